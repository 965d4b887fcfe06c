"""Tests of leftovers of an older iptables set-up: detection, and removal of nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft import check
from ocsf_nft.check import devices, leftovers, read_ruleset
from ocsf_nft.fence import nft
from tests.kernel import command
from tests.kernel.vm_host import DEVICE, SUBNETS, UPLINK, VmHost, own_iptables_lock, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.leftovers import Leftover

pytestmark = pytest.mark.kernel

_FILE = Path(__file__).parents[1] / "check" / "hosts" / "older-set-up.rules4"
_OPTIONS: Final = ("--device", DEVICE, "--subnet", "172.16.0.1/30")
_OTHER_RULES: Final = {
    "-A INPUT -i lo -j ACCEPT",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -i vmtap-1 -m comment --comment ocsf-nft -j ACCEPT",
    "-A FORWARD -i vmtap-+ -j ACCEPT",
    "-A FORWARD -i eth0 -o eth1 -j ACCEPT",
    "-A FORWARD -s 172.16.0.0/30 -o eth1 -j ACCEPT",
    "-A ufw-user-forward -i vmtap-old -j ACCEPT",
    "-A POSTROUTING -s 10.1.0.0/16 -o eth0 -j MASQUERADE",
}
_LEFTOVERS: Final = {
    "-A INPUT -i vmtap-old -j vmtap-old-in",
    (
        "-A INPUT -i vmtap-1 -p tcp -m tcp --dport 3128 -m comment "
        r"""--comment "the proxy\'s \"door\"" -j ACCEPT"""
    ),
    "-A FORWARD -i vmtap-old -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
    "-A DOCKER-USER -o vmtap-old -j ACCEPT",
    "-A POSTROUTING -s 172.16.0.0/30 ! -o vmtap-1 -j MASQUERADE",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VmHost]:
    own_iptables_lock(tmp_path, monkeypatch)
    with vm_host() as vm:
        yield vm


@pytest.fixture(params=["nft", "legacy"])
def backend(host: VmHost, request: pytest.FixtureRequest) -> str:
    """Load the older set-up with a backend of iptables, and return the backend."""
    found: str = request.param
    _iptables(host, found, "-restore", text=_FILE.read_text())
    return found


def _iptables(host: VmHost, backend: str, suffix: str, *more: str, text: str | None = None) -> str:
    done = host.namespace.call(
        lambda: subprocess.run(
            [f"iptables-{backend}{suffix}", *more],
            input=text, text=True, check=True, capture_output=True,
        )
    )  # fmt: skip
    return done.stdout


def _rules(host: VmHost, backend: str) -> set[str]:
    saved = _iptables(host, backend, "-save")
    return {line for line in saved.splitlines() if line.startswith("-A ")}


def _run(host: VmHost, *more: str) -> command.Outcome:
    arguments = ("--netns", str(host.namespace.path), *_OPTIONS)
    return command.run("check", "--json", *arguments, *more)


def _location(finding: dict[str, Any]) -> dict[str, Any]:
    """Return the location of a finding's rule, from the JSON of the finding."""
    location: dict[str, Any] = finding["location"]
    return location


def _found(host: VmHost) -> tuple[CheckScope, list[Leftover]]:
    scope = check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS[:1], port=3128)
    ruleset = read_ruleset.read(host.namespace)
    present = devices.list_devices(host.namespace)
    return scope, leftovers.find_leftovers(ruleset, present, scope)


def test_leftovers_are_named_and_removed_and_other_rules_stay(host: VmHost, backend: str) -> None:
    found = [each for each in _run(host).events if each["name"] == "leftover"]
    assert {_location(each)["rule"] for each in found} == {*_LEFTOVERS, None}
    assert {_location(each)["chain"] for each in found if _location(each)["rule"] is None} == {
        "vmtap-old-in"
    }
    assert {_location(each)["backend"] for each in found} == {backend}
    assert "vmtap-old, which does not exist" in str(found)

    removed = _run(host, "--remove-leftovers")
    assert removed.code == 0, removed.stdout
    assert len(removed.events) == len(found)
    assert all(each["is_removed"] for each in removed.events)
    assert _rules(host, backend) == _OTHER_RULES
    assert ":vmtap-old-in" not in _iptables(host, backend, "-save")
    assert not [each for each in _run(host).events if each["name"] == "leftover"]
    again = _run(host, "--remove-leftovers")
    assert (again.code, again.events) == (0, ())


def test_removed_leftovers_are_listed_on_standard_error(host: VmHost, backend: str) -> None:
    arguments = ("--netns", str(host.namespace.path), *_OPTIONS)
    removed = command.run("check", *arguments, "--remove-leftovers")
    assert removed.stdout == ""
    assert removed.stderr.count("removed: ") == len(_LEFTOVERS) + 1
    assert _rules(host, backend) == _OTHER_RULES


def test_changed_leftover_is_not_removed(host: VmHost, backend: str) -> None:
    scope, found = _found(host)
    _iptables(host, backend, "", "-I", "vmtap-old-in", "-p", "udp", "-j", "ACCEPT")
    _iptables(host, backend, "", "-D", "FORWARD", "-i", "vmtap-old",
              "-m", "conntrack", "--ctstate", "NEW,ESTABLISHED", "-j", "ACCEPT")  # fmt: skip
    results = list(leftovers.remove(found, scope.namespace))
    assert [one for one, _ in results] == found
    failed = {one.text: why for one, why in results if why}
    assert len(failed) == 2
    assert set(failed.values()) == {"it has changed meanwhile"}
    assert "-A vmtap-old-in -p udp -j ACCEPT" in _rules(host, backend)


def test_leftover_chain_with_other_jumps_to_it_is_not_removed(host: VmHost, backend: str) -> None:
    _iptables(host, backend, "", "-A", "ufw-user-forward", "-j", "vmtap-old-in")
    scope, found = _found(host)
    (chain,) = (each for each in found if each.rule is None)
    rule = next(each for each in found if each.rule is not None)
    assert list(leftovers.remove([chain, rule], scope.namespace)) == [
        (chain, "other rules lead to it"), (rule, None),
    ]  # fmt: skip
    removed = _run(host, "--remove-leftovers")
    assert removed.code == 1
    (failed,) = (each for each in removed.events if not each["is_removed"])
    assert failed["reason"] == "other rules lead to it"
    assert "-A vmtap-old-in -j DROP" in _rules(host, backend)


def test_leftovers_without_a_device_are_those_of_removed_devices(
    host: VmHost, backend: str
) -> None:
    arguments = ("--netns", str(host.namespace.path))
    found = command.run("check", "--json", *arguments).events
    rules = {_location(each)["rule"] for each in found if each["name"] == "leftover"}
    assert rules == {None, *(rule for rule in _LEFTOVERS if "vmtap-old" in rule)}
    assert backend


def test_rule_that_was_created_again_is_not_removed(host: VmHost) -> None:
    rule = ("FORWARD", "-i", "vmtap-old", "-j", "ACCEPT")
    _iptables(host, "nft", "", "-A", *rule)
    scope, found = _found(host)
    assert len(found) == 1
    _iptables(host, "nft", "", "-D", *rule)
    _iptables(host, "nft", "", "-A", *rule)
    assert [why for _, why in leftovers.remove(found, scope.namespace)] == [
        "it has changed meanwhile"
    ]
    assert "-A FORWARD -i vmtap-old -j ACCEPT" in _rules(host, "nft")


@pytest.mark.parametrize("device", ["lo", UPLINK])
def test_rule_for_an_interface_of_no_vm_is_no_leftover(
    host: VmHost, backend: str, device: str
) -> None:
    _iptables(host, backend, "", "-A", "FORWARD", "-i", device, "-j", "ACCEPT")
    _iptables(host, backend, "", "-N", f"{device}-in")
    before = _rules(host, backend)
    scope = check.check_scope(host.namespace, device=device, port=3128)
    found = leftovers.find_leftovers(
        read_ruleset.read(host.namespace), devices.list_devices(host.namespace), scope
    )
    assert all("vmtap-old" in each.reason for each in found)
    assert [why for _, why in leftovers.remove(found, scope.namespace) if why] == []
    removed = before - _rules(host, backend)
    assert removed
    assert all("vmtap-old" in rule for rule in removed)
    assert f":{device}-in " in _iptables(host, backend, "-save")


def test_nat_for_the_subnet_of_another_interface_is_no_leftover(host: VmHost, backend: str) -> None:
    rule = "-A POSTROUTING -s 172.16.0.0/30 ! -o up0 -j MASQUERADE"
    _iptables(host, backend, "", "-t", "nat", *rule.split())
    assert _run(host, "--remove-leftovers").code == 0
    assert rule in _rules(host, backend)


def test_removed_leftover_chain_has_changed(host: VmHost, backend: str) -> None:
    scope, found = _found(host)
    _iptables(host, backend, "", "-F", "vmtap-old-in")
    _iptables(host, backend, "", "-D", "INPUT", "-i", "vmtap-old", "-j", "vmtap-old-in")
    _iptables(host, backend, "", "-X", "vmtap-old-in")
    (chain,) = (each for each in found if each.rule is None)
    assert list(leftovers.remove([chain], scope.namespace)) == [(chain, "it has changed meanwhile")]


def test_leftover_without_a_removal_command_is_not_removed(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = nft.find_program
    monkeypatch.setattr(
        nft, "find_program", lambda name: None if name == "iptables-legacy" else program(name)
    )
    rule = ("FORWARD", "-i", "vmtap-old", "-j", "ACCEPT")
    for backend, chain, reason in (
        ("legacy", "vmtap-old", "iptables-legacy is not installed"),
        ("nft", "vmtap-old{", "its name can't be written safely"),
    ):
        _iptables(host, backend, "", "-N", chain)
        _iptables(host, backend, "", "-A", *rule)
        scope, found = _found(host)
        before = _rules(host, backend)
        of_backend = [each for each in found if (each.chain.key.backend == backend)]
        reasons = {
            one.rule is None: why for one, why in leftovers.remove(of_backend, scope.namespace)
        }
        assert reasons[True] == reason
        # With nft, a rule in a chain with a plain name is removed by its handle.
        assert reasons[False] == (reason if backend == "legacy" else None)
        assert len(_rules(host, backend)) == len(before) - (backend == "nft")
        assert f":{chain} " in _iptables(host, backend, "-save")
