"""Tests of the rules and interfaces that packets may use to bypass a fence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.bypass_paths import findings
from ocsf_nft.check.devices import NetDevice
from ocsf_nft.check.ruleset import Ruleset, from_json
from ocsf_nft.fence.values import endpoint
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from ocsf_nft.check import Finding

_VM: Final = CheckScope(namespace=Namespace(), device="vmtap-1", port=3128)
_VMS: Final = CheckScope(namespace=Namespace(), device="vmtap-*", port=3128)


def _devices(*names: str, **more: Any) -> dict[str, NetDevice]:
    """Return TAP devices with the indexes 1, 2, ...; `more` are other attributes."""
    given: dict[str, Any] = {
        "kind": "tun", "master": None, "lower": None, "is_lower_elsewhere": False,
        "has_xdp": False, "has_filters": False,
    }  # fmt: skip
    return {
        name: NetDevice(name=name, ifindex=index, **given | more)
        for index, name in enumerate(names, 1)
    }


def _found(
    *devices: dict[str, NetDevice],
    objects: list[dict[str, Any]] | None = None,
    scope: CheckScope = _VM,
) -> list[Finding]:
    present = {name: device for each in devices for name, device in each.items()}
    ruleset = from_json({"nftables": objects}) if objects else Ruleset()
    return list(findings(ruleset, present, scope))


def _handle(finding: Finding) -> int | None:
    location = finding.location
    return None if location is None else location.handle


def _rules(table: str, *statements: str, family: str = "inet") -> list[dict[str, Any]]:
    table_key = {"family": family, "table": table}
    return [
        {"chain": {**table_key, "name": "c"}},
        *({"rule": {**table_key, "chain": "c", "handle": handle, "expr": [{kind: None}]}}
          for handle, kind in enumerate(statements, 1)),
    ]  # fmt: skip


def test_rules_that_take_packets_or_stop_tracking_are_reported() -> None:
    own = _rules("ocsf_nft_agent", "fwd", "notrack")
    found = _found(objects=[*own, *_rules("site", "drop", "fwd", "notrack", "dup")])
    rule = "a rule in table inet site, chain c "
    assert [(each.name, _handle(each), each.meaning[:80]) for each in found] == [
        ("takes-packets", 2, f"{rule}forwards packets to another interface, past a fence"[:80]),
        ("notrack", 3, f"{rule}excludes packets from connection tracking: replies to a VM"[:80]),
        ("takes-packets", 4, f"{rule}copies packets, past a fence"),
    ]
    for kind in ("fwd", "notrack"):
        found = _found(objects=_rules("site", *[kind] * 9))
        assert [_handle(each) for each in found] == [*range(1, 9)], kind


def test_flowtable_is_reported_with_its_interfaces() -> None:
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


def test_bridge_port_is_reported() -> None:
    present = (
        _devices("vmtap-8", "br0"),
        _devices("vmtap-2", master=2),
        _devices("eth0", master=2),
        _devices("vmtap-3", master=7),
    )
    bridge = [{"chain": {"family": "bridge", "table": "t", "name": "c"}}]
    base = [{"chain": {**bridge[0]["chain"], "hook": "forward", "prio": 0}}]
    ip = [{"chain": {**base[0]["chain"], "family": "ip"}}]
    for objects, has_rules in ((bridge, False), (ip, False), (base, True)):
        found = _found(*present, objects=objects, scope=_VMS)
        assert [each.meaning.partition(":")[0] for each in found] == [
            "vmtap-2 is a port of br0", "vmtap-3 is a port of index 7",
        ]  # fmt: skip
        for each in found:
            assert ("rules of family bridge are not judged" in each.meaning) == has_rules
            assert each.severity == "blocked"  # `install` refuses it
    proxy = endpoint("192.0.2.1:3128")
    sandbox = CheckScope(
        namespace=Namespace(), device=None, port=3128, proxies=(proxy,), links={proxy: "vmtap-2"}
    )
    assert [each.severity for each in _found(*present, scope=sandbox)] == ["degraded"]


def test_programs_on_the_interfaces_in_scope_are_reported() -> None:
    names = [f"vmtap-{number}" for number in range(9)]
    proxy = endpoint("192.0.2.1:3128")
    sandbox = CheckScope(
        namespace=Namespace(), device=None, port=3128, proxies=(proxy,), links={proxy: "eth0"}
    )
    for attribute, name in (("has_xdp", "xdp"), ("has_filters", "tc")):
        present = _devices("vmtap", "xvmtap-1", "eth0", *names, **{attribute: True})
        for scope, expected in (
            (_VM, ["vmtap-1"]),
            (_VMS, names[:8]),
            (sandbox, ["eth0"]),
        ):
            found = _found(present, scope=scope)
            assert [each.name for each in found] == [name] * len(expected)
            for each, device in zip(found, expected, strict=True):
                assert f" {device} " in f" {each.meaning.replace(':', ' ')} "


def test_interfaces_stacked_on_a_device_are_reported() -> None:
    vm_device = _devices("vmtap-1")
    stacked = [f"above{number}" for number in range(9)]
    for kind in ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"):
        (found,) = _found(vm_device, _devices(*stacked, kind=kind, lower=1))
        assert (found.name, found.severity) == ("shared-link", "degraded")
        assert found.meaning.startswith(f"{', '.join(stacked[:8])}: stacked on vmtap-1, ")
    for others in (
        _devices("above", kind="veth", lower=1),
        _devices("above", kind="macvlan", lower=2),
        _devices("above", kind="macvlan", lower=1, is_lower_elsewhere=True),
        _devices("above", kind="macvlan"),
    ):
        assert _found(vm_device, others) == [], others
    for kind, is_elsewhere in (("macvlan", True), ("macvlan", False), ("veth", True)):
        found_here = _found(_devices("vmtap-1", kind=kind, is_lower_elsewhere=is_elsewhere))
        expected = ["info"] * (kind == "macvlan" and is_elsewhere)
        assert [each.severity for each in found_here] == expected, (kind, is_elsewhere)
