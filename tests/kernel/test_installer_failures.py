"""Fences without a record, with a damaged one, or that cannot be loaded completely."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink
from ocsf_nft.errors import AbsentError, DeliveryError, FenceError, UnsupportedError
from ocsf_nft.fence import (
    installer,
    ip_forwarding,
    kernel_log_sysctl,
    links,
    nft,
    pinned_survey,
    routes,
    verification,
)
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.lab import ip
from ocsf_nft.netns import Namespace, named
from tests.delivery.sinks.disks import disk
from tests.descriptors import no_more_descriptors
from tests.kernel import conftest, namespaces, tap

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_NAME = "vm-1"
_HOST = Namespace()


def _tables(namespace: Namespace) -> list[str]:
    return conftest.nft(namespace, "list", "tables").splitlines()


def test_renew_loads_nothing_for_a_sandbox_without_a_record(
    fenced: Lab, state: StateDirectory
) -> None:
    before = conftest.nft(fenced.sandbox_namespace, "-a", "-s", "-t", "list", "ruleset")
    assert installer.renew("unknown", state) is None
    state.delete(conftest.SANDBOX)
    assert installer.renew(conftest.SANDBOX, state) is None
    assert conftest.nft(fenced.sandbox_namespace, "-a", "-s", "-t", "list", "ruleset") == before


def test_verify_names_a_fence_without_a_record(fenced: Lab, tmp_path: Path) -> None:
    nothing = StateDirectory(tmp_path / "nothing")
    found = verification.verify("lab", nothing, fenced.sandbox_namespace)
    assert (found.verdict, found.installed) == ("differs", None)
    assert found.difference == (
        f"a fence is installed in {fenced.sandbox_namespace}, "
        f"but {nothing.path} has no record of lab"
    )


def test_namespace_that_is_replaced_during_the_installation_gets_no_fence(
    spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = pinned_survey.survey

    def survey_and_replace(*arguments: Any) -> Surroundings:
        found = survey(*arguments)
        namespaces.delete(name)
        namespaces.make(name)
        return found

    with namespaces.names(1) as (name,):
        namespaces.make(name)
        monkeypatch.setattr(pinned_survey, "survey", survey_and_replace)
        with pytest.raises(AbsentError, match=f"{name} was replaced by another network namespace"):
            installer.install(spec, named(name), state, "nflog")
        assert _tables(named(name)) == []
        assert state.read_or_none(spec.sandbox) is None
        monkeypatch.undo()
        assert installer.install(spec, named(name), state, "nflog").degraded is None


def test_guard_that_cannot_be_loaded_leaves_the_previous_state(
    lab: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = nft.load
    guarded = dataclasses.replace(spec, guard_device=lab.gateway_device)

    def without_guard(namespace: Namespace, text: str) -> None:
        if "guard of sandbox" in text and namespace == _HOST:
            raise FenceError("no guard today")
        load(namespace, text)

    def install(spec: FenceSpec) -> None:
        lab.gateway_namespace.call(
            lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog")
        )

    # The expected listing comes from a scratch namespace, which equals _HOST.
    monkeypatch.setattr("ocsf_nft.fence.load_ruleset._expected", lambda *_: None)
    monkeypatch.setattr(nft, "load", without_guard)
    with pytest.raises(FenceError, match=r"^no guard today$"):
        install(guarded)
    assert _tables(lab.sandbox_namespace) == []
    assert state.read(spec.sandbox) is None
    install(spec)
    with pytest.raises(FenceError, match="the fence inside was replaced, but the guard: no guard"):
        install(guarded)
    assert _tables(lab.sandbox_namespace) == ["table inet ocsf_nft", "table netdev ocsf_nft"]
    assert _tables(lab.gateway_namespace) == []
    found = state.read(spec.sandbox)
    assert found is not None
    assert found.spec.guard_device is None


def test_failed_installation_that_cannot_be_undone_reports_both_errors(
    lab: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise FenceError("no fence today")

    def restore(*_: object) -> None:
        raise UnsupportedError("no sysctl today")

    state.store_sysctls("nf_log_all_netns", b"0")
    monkeypatch.setattr(nft, "load", load)
    monkeypatch.setattr(kernel_log_sysctl, "write", restore)
    with pytest.raises(FenceError, match=r"^no fence today; then no sysctl today$"):
        installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert state.read(spec.sandbox) is None


def test_installation_whose_record_cannot_be_stored_leaves_nothing(
    lab: Lab, spec: FenceSpec, tmp_path: Path
) -> None:
    # The first record has no listings of the tables: there is room for it.
    with disk(tmp_path, size="32k"):
        state = StateDirectory(tmp_path / "state")
        with pytest.raises(DeliveryError, match="No space left on device"):
            installer.install(spec, lab.sandbox_namespace, state, "nflog")
        assert state.read(spec.sandbox) is None
    assert _tables(lab.sandbox_namespace) == []


def test_table_of_a_vm_that_names_no_sandbox_is_replaced(
    site: tap.Site, state: StateDirectory
) -> None:
    def create_table(family: str, comment: str) -> None:
        table = f"{family} ocsf_nft_{tap.DEVICE}"
        conftest.nft(_HOST, f'add table {table} {{ comment "{comment}"; }}')

    def install() -> None:
        for kind in ("fence", "guard"):
            for family in ("inet", "netdev"):
                create_table(family, f"{kind} of sandbox ../../etc")
            installer.install(tap.spec(_NAME), _HOST, state, "nflog")
            assert verification.verify(_NAME, state).verdict == "as installed"
            conftest.nft(_HOST, "flush ruleset")
            state.delete(_NAME)

    with tap.silent_machine(site):
        site.host.call(install)


def test_table_of_a_vm_that_names_another_vm_does_not_affect_that_vm(
    site: tap.Site, state: StateDirectory
) -> None:
    gateways = ("172.16.8.1/29", "fd00:8::1/64")

    def install() -> None:
        installer.install(tap.spec("other", "vmtap-1", *gateways), _HOST, state, "nflog")
        for family in ("inet", "netdev"):
            table = f"{family} ocsf_nft_{tap.DEVICE}"
            conftest.nft(_HOST, f'add table {table} {{ comment "fence of sandbox other"; }}')
        installer.install(tap.spec(_NAME), _HOST, state, "nflog")
        for name in ("other", _NAME):
            assert verification.verify(name, state).verdict == "as installed", name

    with tap.silent_machine(site), tap.silent_machine(site, "vmtap-1", gateways):
        site.host.call(install)


def test_forwarding_stays_while_a_damaged_record_may_need_it(
    site: tap.Site, state: StateDirectory
) -> None:
    with tap.silent_machine(site):
        before = tap.settings(site.host)
        installer.install(tap.spec(_NAME), site.host, state, "nflog")
        switched = tap.settings(site.host)
        damaged = state.path / "other" / "fence.json"
        damaged.parent.mkdir()
        damaged.write_text("{}")
        installer.remove(_NAME, state)
        assert tap.settings(site.host) == switched != before
        damaged.unlink()
        installer.install(tap.spec(_NAME), site.host, state, "nflog")
        installer.remove(_NAME, state)
        assert tap.settings(site.host) == before


def test_forwarding_of_each_family_is_restored_with_its_last_vm(
    site: tap.Site, state: StateDirectory
) -> None:
    four, six = "172.16.8.1/29", "fd00:8::1/64"
    with (
        tap.silent_machine(site, "vmtap-4", (four,)),
        tap.silent_machine(site, "vmtap-6", (six,)),
    ):
        before = tap.settings(site.host)
        installer.install(tap.spec("four", "vmtap-4", four), site.host, state, "nflog")
        only_four = tap.settings(site.host)
        installer.install(tap.spec("six", "vmtap-6", six), site.host, state, "nflog")
        installer.remove("six", state)
        assert tap.settings(site.host) == only_four != before
        # A value that the operator sets from now on must not be restored.
        key = Path("/proc/sys/net/ipv6/conf/all/forwarding")
        site.host.call(lambda: key.write_text("1"))
        operators = tap.settings(site.host)
        installer.remove("four", state)
        after = tap.settings(site.host)
        assert {path: value for path, value in after.items() if "ipv4" in path} == {
            path: value for path, value in before.items() if "ipv4" in path
        }
        assert {path: value for path, value in after.items() if "ipv6" in path} == {
            path: value for path, value in operators.items() if "ipv6" in path
        }
        assert not list(state.path.glob("forwarding-*"))


def test_forwarding_values_of_a_deleted_namespace_are_stored_while_a_vm_has_a_record(
    state: StateDirectory,
) -> None:
    vm = tap.spec(_NAME).tap
    assert vm is not None
    # A deleted namespace, and another one with the same name.
    for namespace in (named("no-such-namespace"), _HOST):
        state.store_sysctls("forwarding-4:1", b"content")
        ip_forwarding._release("4:1", namespace, [vm], state)
        assert state.stored_sysctls("forwarding-4:1") == b"content"
        ip_forwarding._release("4:1", namespace, [], state)
        assert state.stored_sysctls("forwarding-4:1") is None


def test_forwarding_writes_existing_settings_only(lab: Lab) -> None:
    def write() -> None:
        ip_forwarding._write("ipv4/conf/deleted0/forwarding", "1")
        assert ip_forwarding._read("ipv4/conf/deleted0/forwarding") is None
        sentence = "net.ipv4.conf.lo.forwarding, which can't be switched from here (Invalid argumen"
        with pytest.raises(UnsupportedError, match=re.escape(sentence)):
            ip_forwarding._write("ipv4/conf/lo/forwarding", "x")

    lab.sandbox_namespace.call(write)


def test_forwarding_without_a_cookie_is_identified_by_the_boot_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot, cookie = ip_forwarding._origin().split(" ")
    assert int(cookie) > 0
    monkeypatch.setattr(netlink, "_SO_NETNS_COOKIE", 0x7FFF)  # an option that no kernel has
    assert ip_forwarding._origin() == boot


def test_route_by_a_gateway_of_the_other_family_has_it_as_neighbour(lab: Lab) -> None:
    ip("-n", lab.sandbox, "route", "add", "203.0.113.0/24", "via", "inet6", "fe80::77",
       "dev", lab.sandbox_device)  # fmt: skip
    destination = ipaddress.ip_address("203.0.113.9")
    found = links.survey(lab.sandbox_namespace, [destination])
    assert set(map(str, found.neighbours)) == {"203.0.113.9", "fe80::77"}
    assert found.uplinks == (lab.sandbox_device,)


def test_route_is_an_error_if_the_kernel_cannot_be_queried() -> None:
    with no_more_descriptors(), pytest.raises(OSError, match="Too many open files"):
        routes.to_address(ipaddress.ip_address("203.0.113.9"))
