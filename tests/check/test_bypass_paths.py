"""Rules and interfaces past which packets may go, from descriptions of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.bypass_paths import ways_past
from ocsf_nft.check.devices import Device
from ocsf_nft.check.diagnosis import Question
from ocsf_nft.check.ruleset import Ruleset, from_json
from ocsf_nft.fence.values import endpoint
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from ocsf_nft.check import Finding

_MACHINE: Final = Question(namespace=Namespace(), device="vmtap-1", port=3128)
_MACHINES: Final = Question(namespace=Namespace(), device="vmtap-*", port=3128)


def _devices(*names: str, **more: Any) -> dict[str, Device]:
    """Return TAP devices with the indexes 1, 2, ...; `more` are their other attributes."""
    given: dict[str, Any] = {
        "kind": "tun", "master": None, "lower": None, "is_lower_elsewhere": False,
        "has_xdp": False, "has_filters": False,
    }  # fmt: skip
    return {
        name: Device(name=name, ifindex=index, **given | more)
        for index, name in enumerate(names, 1)
    }


def _found(
    *devices: dict[str, Device],
    objects: list[dict[str, Any]] | None = None,
    question: Question = _MACHINE,
) -> list[Finding]:
    around = {name: device for each in devices for name, device in each.items()}
    ruleset = from_json({"nftables": objects}) if objects else Ruleset()
    return list(ways_past(ruleset, around, question))


def _rules(table: str, *statements: str, family: str = "inet") -> list[dict[str, Any]]:
    place = {"family": family, "table": table}
    return [
        {"chain": {**place, "name": "c"}},
        *({"rule": {**place, "chain": "c", "handle": handle, "expr": [{kind: None}]}}
          for handle, kind in enumerate(statements, 1)),
    ]  # fmt: skip


def test_check_tells_rules_of_others_that_take_packets_or_stop_tracking() -> None:
    ours = _rules("ocsf_nft_agent", "fwd", "notrack")
    found = _found(objects=[*ours, *_rules("site", "drop", "fwd", "notrack", "dup")])
    at = "a rule in table inet site, chain c "
    assert [(each.name, each.place and each.place.handle, each.meaning[:80]) for each in found] == [
        ("takes-packets", 2, f"{at}sends packets on to another interface, past a fence"[:80]),
        ("notrack", 3, f"{at}keeps packets from connection tracking: a VM's replies"[:80]),
        ("takes-packets", 4, f"{at}copies packets, past a fence"),
    ]
    for kind in ("fwd", "notrack"):
        found = _found(objects=_rules("site", *[kind] * 9))
        assert [each.place and each.place.handle for each in found] == [*range(1, 9)], kind


def test_check_tells_each_flowtable_and_its_interfaces() -> None:
    flowtable = {"family": "inet", "table": "site"}
    devices = [f"up{number}" for number in range(9)]
    objects: list[dict[str, Any]] = [
        {"flowtable": {**flowtable, "name": "idle"}},
        *({"flowtable": {**flowtable, "name": f"fast{number}", "dev": devices}}
          for number in range(8)),
    ]  # fmt: skip
    meanings = [each.meaning for each in _found(objects=objects)]
    assert len(meanings) == 8
    assert meanings[0].startswith("flowtable idle of table inet site (no interface yet): ")
    shown = ", ".join(devices[:8])
    assert meanings[7].startswith(f"flowtable fast6 of table inet site ({shown}): ")


def test_check_tells_which_interfaces_are_ports_of_a_bridge() -> None:
    around = (
        _devices("vmtap-8", "br0"),
        _devices("vmtap-2", master=2),
        _devices("eth0", master=2),
        _devices("vmtap-3", master=7),
    )
    bridge = [{"chain": {"family": "bridge", "table": "t", "name": "c"}}]
    base = [{"chain": {**bridge[0]["chain"], "hook": "forward", "prio": 0}}]
    ip = [{"chain": {**base[0]["chain"], "family": "ip"}}]
    for objects, has_rules in ((bridge, False), (ip, False), (base, True)):
        found = _found(*around, objects=objects, question=_MACHINES)
        assert [each.meaning.partition(":")[0] for each in found] == [
            "vmtap-2 is a port of br0", "vmtap-3 is a port of index 7",
        ]  # fmt: skip
        for each in found:
            assert ("rules of family bridge are not judged" in each.meaning) == has_rules


def test_check_tells_what_is_bound_to_the_interfaces_in_question() -> None:
    names = [f"vmtap-{number}" for number in range(9)]
    proxy = endpoint("192.0.2.1:3128")
    sandbox = Question(
        namespace=Namespace(), device=None, port=3128, proxies=(proxy,), links={proxy: "eth0"}
    )
    for attribute, name in (("has_xdp", "xdp"), ("has_filters", "tc")):
        around = _devices("vmtap", "xvmtap-1", "eth0", *names, **{attribute: True})
        for question, told in (
            (_MACHINE, ["vmtap-1"]),
            (_MACHINES, names[:8]),
            (sandbox, ["eth0"]),
        ):
            found = _found(around, question=question)
            assert [each.name for each in found] == [name] * len(told)
            for each, device in zip(found, told, strict=True):
                assert f" {device} " in f" {each.meaning.replace(':', ' ')} "


def test_check_tells_the_interfaces_that_are_stacked_on_a_device() -> None:
    machine = _devices("vmtap-1")
    stacked = [f"above{number}" for number in range(9)]
    for kind in ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"):
        (found,) = _found(machine, _devices(*stacked, kind=kind, lower=1))
        assert (found.name, found.severity) == ("shared-link", "degraded")
        assert found.meaning.startswith(f"{', '.join(stacked[:8])}: stacked on vmtap-1, ")
    for others in (
        _devices("above", kind="veth", lower=1),
        _devices("above", kind="macvlan", lower=2),
        _devices("above", kind="macvlan", lower=1, is_lower_elsewhere=True),
        _devices("above", kind="macvlan"),
    ):
        assert _found(machine, others) == [], others
    for kind, is_elsewhere in (("macvlan", True), ("macvlan", False), ("veth", True)):
        found_here = _found(_devices("vmtap-1", kind=kind, is_lower_elsewhere=is_elsewhere))
        told = ["info"] * (kind == "macvlan" and is_elsewhere)
        assert [each.severity for each in found_here] == told, (kind, is_elsewhere)
