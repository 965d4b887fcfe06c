"""Leftovers of an older iptables set-up: named, removed one by one, and nothing else is."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import check
from ocsf_nft.check import devices, leftovers, read_ruleset
from ocsf_nft.fence import nft
from tests.kernel import command
from tests.kernel.vm_host import DEVICE, SUBNETS, UPLINK, VmHost, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.diagnosis import CheckScope
    from ocsf_nft.check.leftovers import Leftover

pytestmark = pytest.mark.kernel

_FILE = Path(__file__).parents[1] / "check" / "hosts" / "older-set-up.rules4"
_PLACE: Final = ("--device", DEVICE, "--subnet", "172.16.0.1/30")
_KEPT: Final = {
    "-A INPUT -i lo -j ACCEPT",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -i vmtap-1 -m comment --comment ocsf-nft -j ACCEPT",
    "-A FORWARD -i vmtap-+ -j ACCEPT",
    "-A FORWARD -i eth0 -o eth1 -j ACCEPT",
    "-A FORWARD -s 172.16.0.0/30 -o eth1 -j ACCEPT",
    "-A ufw-user-forward -i vmtap-old -j ACCEPT",
    "-A POSTROUTING -s 10.1.0.0/16 -o eth0 -j MASQUERADE",
}
_GONE: Final = {
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
def host() -> Iterator[VmHost]:
    with vm_host() as made:
        yield made


@pytest.fixture(params=["nft", "legacy"])
def backend(host: VmHost, request: pytest.FixtureRequest) -> str:
    """The kind of iptables that the older set-up used."""
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
    place = ("--netns", str(host.namespace.path), *_PLACE)
    return command.run("check", "--json", *place, *more)


def _found(host: VmHost) -> tuple[CheckScope, list[Leftover]]:
    asked = check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS[:1], port=3128)
    ruleset = read_ruleset.read(host.namespace)
    present = devices.list_devices(host.namespace)
    return asked, leftovers.leftovers(ruleset, present, asked)


def test_they_are_named_and_removed_and_nothing_else_is(host: VmHost, backend: str) -> None:
    told = [each for each in _run(host).events if each["name"] == "leftover"]
    assert {each["place"]["rule"] for each in told} == {*_GONE, None}
    assert {each["place"]["chain"] for each in told if each["place"]["rule"] is None} == {
        "vmtap-old-in"
    }
    assert {each["place"]["backend"] for each in told} == {backend}
    assert "vmtap-old, which isn't there" in str(told)

    removed = _run(host, "--remove-leftovers")
    assert removed.code == 0, removed.stdout
    assert len(removed.events) == len(told)
    assert all(each["is_removed"] for each in removed.events)
    assert _rules(host, backend) == _KEPT
    assert ":vmtap-old-in" not in _iptables(host, backend, "-save")
    assert not [each for each in _run(host).events if each["name"] == "leftover"]
    again = _run(host, "--remove-leftovers")
    assert (again.code, again.events) == (0, ())


def test_what_it_removes_is_said_to_people_on_standard_error(host: VmHost, backend: str) -> None:
    place = ("--netns", str(host.namespace.path), *_PLACE)
    removed = command.run("check", *place, "--remove-leftovers")
    assert removed.stdout == ""
    assert removed.stderr.count("removed: ") == len(_GONE) + 1
    assert _rules(host, backend) == _KEPT


def test_one_that_has_changed_meanwhile_is_not_touched(host: VmHost, backend: str) -> None:
    asked, found = _found(host)
    _iptables(host, backend, "", "-I", "vmtap-old-in", "-p", "udp", "-j", "ACCEPT")
    _iptables(host, backend, "", "-D", "FORWARD", "-i", "vmtap-old",
              "-m", "conntrack", "--ctstate", "NEW,ESTABLISHED", "-j", "ACCEPT")  # fmt: skip
    results = list(leftovers.remove(found, asked.namespace))
    assert [one for one, _ in results] == found
    kept = {one.text: why for one, why in results if why}
    assert len(kept) == 2
    assert set(kept.values()) == {"it has changed meanwhile"}
    assert "-A vmtap-old-in -p udp -j ACCEPT" in _rules(host, backend)


def test_a_chain_that_others_still_lead_to_is_left_whole(host: VmHost, backend: str) -> None:
    _iptables(host, backend, "", "-A", "ufw-user-forward", "-j", "vmtap-old-in")
    asked, found = _found(host)
    (chain,) = (each for each in found if each.rule is None)
    rule = next(each for each in found if each.rule is not None)
    assert list(leftovers.remove([chain, rule], asked.namespace)) == [
        (chain, "other rules lead to it"), (rule, None),
    ]  # fmt: skip
    removed = _run(host, "--remove-leftovers")
    assert removed.code == 1
    (kept,) = (each for each in removed.events if not each["is_removed"])
    assert kept["reason"] == "other rules lead to it"
    assert "-A vmtap-old-in -j DROP" in _rules(host, backend)


def test_without_a_device_only_what_is_for_devices_that_are_gone(
    host: VmHost, backend: str
) -> None:
    place = ("--netns", str(host.namespace.path))
    told = command.run("check", "--json", *place).events
    rules = {each["place"]["rule"] for each in told if each["name"] == "leftover"}
    assert rules == {None, *(rule for rule in _GONE if "vmtap-old" in rule)}
    assert backend


def test_one_that_was_made_anew_is_another_one(host: VmHost) -> None:
    rule = ("FORWARD", "-i", "vmtap-old", "-j", "ACCEPT")
    _iptables(host, "nft", "", "-A", *rule)
    asked, found = _found(host)
    assert len(found) == 1
    _iptables(host, "nft", "", "-D", *rule)
    _iptables(host, "nft", "", "-A", *rule)
    assert [why for _, why in leftovers.remove(found, asked.namespace)] == [
        "it has changed meanwhile"
    ]
    assert "-A FORWARD -i vmtap-old -j ACCEPT" in _rules(host, "nft")


@pytest.mark.parametrize("device", ["lo", UPLINK])
def test_what_is_for_an_interface_that_is_no_vms_is_nobodys_leftover(
    host: VmHost, backend: str, device: str
) -> None:
    _iptables(host, backend, "", "-A", "FORWARD", "-i", device, "-j", "ACCEPT")
    _iptables(host, backend, "", "-N", f"{device}-in")
    before = _rules(host, backend)
    asked = check.check_scope(host.namespace, device=device, port=3128)
    found = leftovers.leftovers(
        read_ruleset.read(host.namespace), devices.list_devices(host.namespace), asked
    )
    assert all("vmtap-old" in each.reason for each in found)
    assert [why for _, why in leftovers.remove(found, asked.namespace) if why] == []
    gone = before - _rules(host, backend)
    assert gone
    assert all("vmtap-old" in rule for rule in gone)
    assert f":{device}-in " in _iptables(host, backend, "-save")


def test_nat_for_a_subnet_that_another_interface_has_is_its_own(host: VmHost, backend: str) -> None:
    rule = "-A POSTROUTING -s 172.16.0.0/30 ! -o up0 -j MASQUERADE"
    _iptables(host, backend, "", "-t", "nat", *rule.split())
    assert _run(host, "--remove-leftovers").code == 0
    assert rule in _rules(host, backend)


def test_leftover_chain_that_is_gone_by_then_has_changed(host: VmHost, backend: str) -> None:
    asked, found = _found(host)
    _iptables(host, backend, "", "-F", "vmtap-old-in")
    _iptables(host, backend, "", "-D", "INPUT", "-i", "vmtap-old", "-j", "vmtap-old-in")
    _iptables(host, backend, "", "-X", "vmtap-old-in")
    (chain,) = (each for each in found if each.rule is None)
    assert list(leftovers.remove([chain], asked.namespace)) == [(chain, "it has changed meanwhile")]


def test_leftover_stays_where_no_command_can_remove_it(
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
        asked, found = _found(host)
        before = _rules(host, backend)
        ours = [each for each in found if (each.chain.key.backend == backend)]
        kept = {one.rule is None: why for one, why in leftovers.remove(ours, asked.namespace)}
        assert kept[True] == reason
        # A rule of nft's is removed by its handle, in a chain with a plain name.
        assert kept[False] == (reason if backend == "legacy" else None)
        assert len(_rules(host, backend)) == len(before) - (backend == "nft")
        assert f":{chain} " in _iptables(host, backend, "-save")
