from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import installer, nft, ruleset
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import INTERNET4, ip
from ocsf_nft.netns import Namespace, named, of_process
from tests.kernel import conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec, LogTransport
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_HERE = Path(__file__).parent
_ALL_NETNS = Path("/proc/sys/net/netfilter/nf_log_all_netns")


@pytest.fixture
def far_counter(lab: Lab, counters: Callable[[Namespace], dict[str, int]]) -> Callable[[], int]:
    """How many packets of the flood came out, counted by the far end's kernel: none is missed."""
    conftest.nft(lab.gateway_namespace, 'add table netdev far; add counter netdev far out; '
                 'add chain netdev far ingress '
                 '{ type filter hook ingress device "gw0" priority 0; }; '
                 "add rule netdev far ingress udp dport 9 counter name out")  # fmt: skip
    return lambda: counters(lab.gateway_namespace)["out"]


@pytest.fixture
def flood(lab: Lab) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        process = lab.sandbox_namespace.call(
            lambda: subprocess.Popen(
                [sys.executable, str(_HERE / "flood.py"), INTERNET4, str(seconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _sent(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=30)
    return int(output)


def test_replacing_the_fence_under_a_flood_lets_no_packet_out(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    far_counter: Callable[[], int],
    flood: Callable[[float], subprocess.Popen[str]],
) -> None:
    other = dataclasses.replace(spec, exceptions=(endpoint("10.200.0.9:80"),))
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    process = flood(2.5)
    replaced = 0
    while process.poll() is None:
        wanted = other if replaced % 2 == 0 else spec
        assert installer.install(wanted, lab.sandbox_namespace, state, "nflog").spec == wanted
        replaced += 1
    assert _sent(process) > 50_000
    assert replaced > 10
    assert far_counter() == 0


def test_installing_under_a_flood_stops_it(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    far_counter: Callable[[], int],
    flood: Callable[[float], subprocess.Popen[str]],
) -> None:
    process = flood(1.5)
    while far_counter() == 0:
        time.sleep(0.01)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    time.sleep(0.05)  # what is still in the veth's queue
    before = far_counter()
    assert _sent(process) > before
    assert far_counter() == before > 0


def test_a_ruleset_with_an_error_leaves_the_fence_untouched(
    fenced: Lab, state: StateDirectory, spec: FenceSpec
) -> None:
    around = installer._survey(spec, fenced.sandbox_namespace)
    text = ruleset.sandbox(spec, around, "nflog") + "add rule inet ocsf_nft nowhere accept\n"
    with pytest.raises((FenceError, UnsupportedError)) as refused:
        nft.load(fenced.sandbox_namespace, text)
    assert "add rule inet ocsf_nft nowhere accept" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert installer.verify(spec.sandbox, state).verdict == "as installed"


def test_installing_what_stands_already_changes_nothing(
    fenced: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
) -> None:
    conftest.nft(fenced.sandbox_namespace, "add rule inet ocsf_nft forward counter")
    handle = conftest.nft(fenced.sandbox_namespace, "-a", "list", "table", "inet", "ocsf_nft")
    # Tampered with: the same installation mends it.
    installer.install(spec, fenced.sandbox_namespace, state)
    assert installer.verify(spec.sandbox, state).verdict == "as installed"
    mended = conftest.nft(fenced.sandbox_namespace, "-a", "list", "table", "inet", "ocsf_nft")
    assert mended != handle
    # As installed: the same tables (by their handles) and their counters stay.
    installer.install(spec, fenced.sandbox_namespace, state)
    again = conftest.nft(fenced.sandbox_namespace, "-a", "list", "table", "inet", "ocsf_nft")
    assert again.splitlines()[0] == mended.splitlines()[0]
    assert set(counters(fenced.sandbox_namespace)) == {
        "refused_egress",
        "refused_forward",
        "refused_ingress",
        "refused_link",
    }


@pytest.mark.parametrize(
    "tampering",
    [
        ("insert", "rule", "inet", "ocsf_nft", "output", "accept"),
        ("flush", "chain", "netdev", "ocsf_nft", "egress"),
        ("delete", "table", "netdev", "ocsf_nft"),
        ("add", "element", "inet", "ocsf_nft", "allowed4", "{ 203.0.113.7 . tcp . 443 }"),
        ("add", "table", "inet", "ocsf_nft", "{ flags dormant; }"),
    ],
    ids=lambda tampering: " ".join(tampering[:2]) + " " + tampering[-1],
)
def test_verify_shows_what_was_changed(
    fenced: Lab, state: StateDirectory, tampering: tuple[str, ...]
) -> None:
    assert installer.verify(conftest.SANDBOX, state).verdict == "as installed"
    conftest.nft(fenced.sandbox_namespace, *tampering)
    found = installer.verify(conftest.SANDBOX, state)
    assert found.verdict == "differs"
    assert found.difference


def test_verify_names_an_interface_that_came_later(fenced: Lab, state: StateDirectory) -> None:
    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    found = installer.verify(conftest.SANDBOX, state)
    assert found.verdict == "differs"
    assert "late0" in found.difference


def test_verify_finds_a_flushed_or_never_fenced_namespace_absent(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
    assert installer.verify(conftest.SANDBOX, state).verdict == "absent"
    nothing = StateDirectory(tmp_path / "nothing")
    gateway = fenced.gateway_namespace
    assert installer.verify(conftest.SANDBOX, nothing, gateway).verdict == "absent"


def test_what_somebody_else_loaded_stays(lab: Lab, spec: FenceSpec, state: StateDirectory) -> None:
    conftest.nft(lab.sandbox_namespace, "add", "table", "inet", "somebody_elses")
    installer.install(spec, lab.sandbox_namespace, state)
    installer.install(dataclasses.replace(spec, group=77), lab.sandbox_namespace, state)
    installer.remove(spec.sandbox, state)
    tables = conftest.nft(lab.sandbox_namespace, "list", "tables")
    assert tables == "table inet somebody_elses\n"


def test_removing_leaves_nothing(fenced: Lab, state: StateDirectory) -> None:
    installer.remove(conftest.SANDBOX, state)
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""
    assert not list(state.path.rglob("*.json"))
    with pytest.raises(AbsentError):
        installer.remove(conftest.SANDBOX, state, fenced.sandbox_namespace)


def test_a_namespace_by_its_process_is_fenced(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    process = lab.sandbox_namespace.call(lambda: subprocess.Popen(["sleep", "30"]))
    try:
        installer.install(spec, of_process(process.pid), state)
        assert installer.verify(spec.sandbox, state, lab.sandbox_namespace).verdict == (
            "as installed"
        )
    finally:
        process.kill()
        process.wait()
    # The process is gone; its number may be anybody's by now.
    assert installer.verify(spec.sandbox, state).verdict == "absent"


def test_the_fence_of_another_sandbox_is_left_alone(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    stranger = dataclasses.replace(spec, sandbox="stranger")
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        installer.install(stranger, fenced.sandbox_namespace, state)
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        installer.remove("stranger", state, fenced.sandbox_namespace)
    assert installer.verify(conftest.SANDBOX, state).verdict == "as installed"


def test_a_sandbox_that_is_fenced_here_is_not_fenced_there(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    with pytest.raises(FenceError, match="stands in"):
        installer.install(spec, fenced.gateway_namespace, state)
    with pytest.raises(FenceError, match="stands in"):
        installer.remove(spec.sandbox, state, fenced.gateway_namespace)
    assert installer.verify(spec.sandbox, state).verdict == "as installed"


def test_the_guard_of_another_sandbox_is_left_alone_and_an_old_one_removed(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    def tables() -> str:
        return conftest.nft(lab.gateway_namespace, "list", "tables", "netdev")

    def install(spec: FenceSpec) -> None:
        lab.gateway_namespace.call(
            lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog")
        )

    guarded = dataclasses.replace(spec, guard_device=lab.gateway_device)
    install(guarded)
    assert "ocsf_nft_gw0" in tables()
    stranger = dataclasses.replace(guarded, sandbox="stranger")
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        lab.gateway_namespace.call(
            lambda: installer.install(stranger, lab.gateway_namespace, state, "nflog")
        )
    install(spec)
    assert tables() == ""


def test_the_sysctl_is_put_back_by_the_last_that_used_it(
    lab: Lab, spec: FenceSpec, state: StateDirectory, all_netns: Callable[[], str]
) -> None:
    other = dataclasses.replace(spec, sandbox="other")
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    installer.install(other, lab.gateway_namespace, state, "kmsg")
    installer.remove(spec.sandbox, state)
    assert all_netns() == "1"
    installer.install(other, lab.gateway_namespace, state, "nflog")
    assert all_netns() == "0"


def test_a_kernel_log_fence_whose_sysctl_is_off_is_not_as_installed(
    lab: Lab, spec: FenceSpec, state: StateDirectory, all_netns: Callable[[], str]
) -> None:
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    _ALL_NETNS.write_text("0")
    found = installer.verify(spec.sandbox, state)
    assert (found.verdict, "nf_log_all_netns" in found.difference) == ("differs", True)
    installer.install(spec, lab.sandbox_namespace, state, "kmsg")
    assert all_netns() == "1"
    assert installer.verify(spec.sandbox, state).verdict == "as installed"


def test_what_is_altered_while_it_is_installed_is_not_taken_for_what_was_installed(
    lab: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = nft.load

    def tampered(namespace: Namespace, text: str) -> None:
        load(namespace, text)
        if namespace == lab.sandbox_namespace:
            conftest.nft(namespace, "insert", "rule", "inet", "ocsf_nft", "output", "accept")

    monkeypatch.setattr(nft, "load", tampered)
    with pytest.raises(FenceError, match="altered while it was installed"):
        installer.install(spec, lab.sandbox_namespace, state)


def test_a_guard_for_an_interface_that_is_not_there_is_refused(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    guarded = dataclasses.replace(spec, guard_device="nowhere0")
    with pytest.raises(AbsentError, match="nowhere0"):
        installer.install(guarded, lab.sandbox_namespace, state)
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


def test_a_namespace_that_is_not_there_is_named(spec: FenceSpec, state: StateDirectory) -> None:
    with pytest.raises(AbsentError, match="no-such-namespace"):
        installer.install(spec, named("no-such-namespace"), state)
    assert not state.path.exists()


def test_an_interface_that_nft_cant_name_stops_the_installation(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ip("-n", lab.sandbox, "link", "add", 'a"b', "type", "veth", "peer", "name", "plain")
    with pytest.raises(Exception, match="rename it"):
        installer.install(spec, lab.sandbox_namespace, state)
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "without.so"
    compiler = shutil.which("cc")
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, _HERE / "without.c"], check=True)
    return library


@pytest.fixture
def all_netns() -> Iterator[Callable[[], str]]:
    """``nf_log_all_netns``, off at the start and put back at the end."""
    before = _ALL_NETNS.read_text()
    _ALL_NETNS.write_text("0")
    yield lambda: _ALL_NETNS.read_text().strip()
    _ALL_NETNS.write_text(before)


@pytest.mark.parametrize(
    ("without", "transport", "degraded"),
    [(None, "nflog", False), ("nflog", "kmsg", False), ("log", "none", True)],
)
def test_the_ladder_ends_on_the_best_rung_that_the_kernel_has(
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
    assert installer.verify(spec.sandbox, state).verdict == "as installed"
    installer.remove(spec.sandbox, state)
    assert all_netns() == "0"


def test_a_transport_that_is_asked_for_is_used_or_the_installation_fails(
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
    assert installer.verify(spec.sandbox, state, lab.sandbox_namespace).verdict == "absent"


def test_without_nft_nothing_is_installed(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Somebody else's nft, or one that everybody may overwrite, is not run.
    planted = tmp_path / "nft"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o777)
    os.chown(planted, 0, 0)
    monkeypatch.setattr(nft, "TRUSTED", (tmp_path,))
    with pytest.raises(UnsupportedError, match="nftables package"):
        installer.install(spec, lab.sandbox_namespace, state)


def test_the_policy_files_load_as_they_stand() -> None:
    for file in ("sandbox.nft", "guard.nft"):
        path = _HERE.parents[1] / "rules" / file
        subprocess.run(["unshare", "-n", "nft", "-c", "-f", path], check=True)
