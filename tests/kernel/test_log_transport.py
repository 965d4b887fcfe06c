"""Log transport of a fence: the best one of the kernel, and never none without a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.check import host_features
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import installer, kernel_log_sysctl, nft, verification
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec, LogTransport
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

_HERE = Path(__file__).parent
_ALL_NETNS = Path("/proc/sys/net/netfilter/nf_log_all_netns")


@pytest.fixture
def all_netns() -> Iterator[Callable[[], str]]:
    """Set ``nf_log_all_netns`` to off, and restore it at the end."""
    before = _ALL_NETNS.read_text()
    _ALL_NETNS.write_text("0")
    yield lambda: _ALL_NETNS.read_text().strip()
    _ALL_NETNS.write_text(before)


@pytest.mark.parametrize(
    ("without", "transport", "degraded"),
    [(None, "nflog", False), ("nflog", "kmsg", False), ("log", "none", True)],
)
def test_installer_selects_the_best_transport_of_the_kernel(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    shim: Path,
    all_netns: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    without: str | None,
    transport: LogTransport,
    degraded: bool,
) -> None:
    if without is not None:
        environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": without}
        monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    installed = installer.install(spec, lab.sandbox_namespace, state)
    assert installed.transport == transport
    assert all_netns() == ("1" if transport == "kmsg" else "0")
    assert (installed.degraded is not None) == degraded
    if installed.degraded is not None:
        assert "nft_log" in installed.degraded
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    installer.remove(spec.sandbox, state)
    assert all_netns() == "0"


def test_requested_transport_is_used_or_the_installation_fails(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    shim: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": "nflog"}
    monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    with pytest.raises(UnsupportedError, match="nft_log"):
        installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state, lab.sandbox_namespace).verdict == "absent"


def test_sysctl_is_restored_with_the_last_fence_that_used_it(
    lab: Lab, spec: FenceSpec, state: StateDirectory, all_netns: Callable[[], str]
) -> None:
    other = dataclasses.replace(spec, sandbox="other")
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    installer.install(other, lab.gateway_namespace, state, "kmsg")
    installer.remove(spec.sandbox, state)
    assert all_netns() == "1"
    installer.install(other, lab.gateway_namespace, state, "nflog")
    assert all_netns() == "0"


def test_sysctl_concerns_all_namespaces_but_the_initial_one(
    lab: Lab, all_netns: Callable[[], str]
) -> None:
    assert kernel_log_sysctl.blocking_value(Namespace()) is None
    assert kernel_log_sysctl.blocking_value(lab.sandbox_namespace) == "0"
    kernel_log_sysctl.write("1")
    assert all_netns() == "1"
    assert kernel_log_sysctl.blocking_value(lab.sandbox_namespace) is None


def test_sysctl_stays_on_while_a_damaged_record_may_need_it(
    lab: Lab, spec: FenceSpec, state: StateDirectory, all_netns: Callable[[], str]
) -> None:
    other = dataclasses.replace(spec, sandbox="other")
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    installer.install(other, lab.gateway_namespace, state, "kmsg")
    (state.path / spec.sandbox / "fence.json").write_text("{")
    installer.remove(other.sandbox, state)
    assert all_netns() == "1"  # the damaged one may need it
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    installer.remove(spec.sandbox, state)
    assert all_netns() == "0"


def test_kernel_log_fence_with_a_disabled_sysctl_differs(
    lab: Lab, spec: FenceSpec, state: StateDirectory, all_netns: Callable[[], str]
) -> None:
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    _ALL_NETNS.write_text("0")
    found = verification.verify(spec.sandbox, state)
    assert (found.verdict, "nf_log_all_netns" in found.difference) == ("differs", True)
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    assert all_netns() == "1"
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


@pytest.fixture
def read_only_sysctl(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Make the sysctl read-only until this is undone."""
    write = kernel_log_sysctl.write

    def refuse(value: str) -> None:
        if value == "0":
            raise UnsupportedError("it can't be set from here")
        write(value)

    with monkeypatch.context() as patch:
        patch.setattr(kernel_log_sysctl, "write", refuse)
        yield patch


def test_record_stays_until_a_second_removal_restores_the_sysctl(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    all_netns: Callable[[], str],
    read_only_sysctl: pytest.MonkeyPatch,
) -> None:
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    with pytest.raises(UnsupportedError, match="can't be set"):
        installer.remove(spec.sandbox, state)
    assert list(state.sandboxes()) == [spec.sandbox]
    read_only_sysctl.undo()
    installer.remove(spec.sandbox, state)
    assert all_netns() == "0"
    assert not list(state.sandboxes())


def test_previous_value_stays_stored_until_a_second_installation_restores_the_sysctl(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    all_netns: Callable[[], str],
    read_only_sysctl: pytest.MonkeyPatch,
) -> None:
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    with pytest.raises(
        FenceError, match="the fence of sandbox lab is installed, but it can't be set"
    ):
        installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    read_only_sysctl.undo()
    installed = installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert (all_netns(), state.stored_sysctls("nf_log_all_netns")) == ("0", None)
    assert state.read(spec.sandbox) == installed


@pytest.mark.parametrize("before", [None, "nflog"])
def test_sysctl_is_restored_if_the_fence_does_not_load(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    shim: Path,
    all_netns: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    before: LogTransport | None,
) -> None:
    previous = before and installer.install(spec, lab.sandbox_namespace, state, before)
    environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": "log"}
    monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    with pytest.raises(UnsupportedError, match="nft_log"):
        installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    assert all_netns() == "0"
    assert state.read(spec.sandbox) == previous


def test_sysctl_that_cannot_be_changed_leads_to_the_next_transport(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    shim: Path,
    all_netns: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_before: str) -> None:
        raise UnsupportedError("it can't be set from here")

    environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": "nflog"}
    monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    monkeypatch.setattr(kernel_log_sysctl, "write", refuse)
    installed = installer.install(spec, lab.sandbox_namespace, state)
    assert (installed.transport, state.stored_sysctls("nf_log_all_netns")) == ("none", None)
    with pytest.raises(UnsupportedError, match="can't be set"):
        installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    assert state.read(spec.sandbox) == installed
    assert all_netns() == "0"


#: A file that no user can write, not even root.
_READ_ONLY = Path("/proc/sys/kernel/ostype")


@pytest.mark.parametrize(
    ("work", "sysctl", "cause"),
    [
        (
            lambda: kernel_log_sysctl.blocking_value(Namespace()),
            Path("/nothing"),
            "No such file or directory",
        ),
        (kernel_log_sysctl.probe, _READ_ONLY, "Permission denied"),
        (lambda: kernel_log_sysctl.write("0"), _READ_ONLY, "Permission denied"),
    ],
    ids=["blocking_value", "probe", "write"],
)
def test_inaccessible_sysctl_is_an_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any], sysctl: Path, cause: str
) -> None:
    monkeypatch.setattr(kernel_log_sysctl, "_SYSCTL", sysctl)
    monkeypatch.setattr(kernel_log_sysctl, "of_process", lambda _pid: Namespace())
    with pytest.raises(UnsupportedError):
        work()
    found = host_features._probe("all-netns", "degraded", "", work)
    assert found.meaning == (
        "net.netfilter.nf_log_all_netns, which allows records of other namespaces in the kernel "
        "log, can't be read or set from here"
    )
    assert found.remedy == f"that takes root on the host ({cause})"
