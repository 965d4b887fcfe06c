"""Checks for rules and interfaces through which packets can bypass a fence.

Examples are flowtables, ports of a bridge, and interfaces with an XDP program.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from ocsf_nft.check import firewalls
from ocsf_nft.check.finding import Finding, RuleLocation
from ocsf_nft.check.packet import Truth, interface
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.devices import NetDevice
    from ocsf_nft.check.finding import Severity
    from ocsf_nft.check.ruleset import Ruleset

_MAX_REPORTED: Final = 8
#: Effects of statements that let packets bypass a fence, or the recognition of replies.
_EFFECTS: Final = {
    "fwd": "forwards packets to another interface, past a fence",
    "dup": "copies packets, past a fence",
    "notrack": "excludes packets from connection tracking: replies to a VM among them are not "
    "recognised as replies, and are dropped",
}
_STACKED: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"})


def findings(
    ruleset: Ruleset, devices: Mapping[str, NetDevice], scope: CheckScope
) -> Iterator[Finding]:
    """Yield findings about rules and interfaces through which packets may bypass a fence.

    ``devices`` are all interfaces, by name. Only interfaces that belong to the VM in ``scope``, or
    lead to a proxy in ``scope``, are checked.
    """
    yield from _flowtables(ruleset)
    yield from islice(_rules(ruleset), _MAX_REPORTED)
    selected = list(islice(_selected(devices, scope), _MAX_REPORTED))
    # `install` refuses such an interface of a VM (links.survey_device).
    severity: Severity = "degraded" if scope.device is None else "blocked"
    yield from _bridge_ports(ruleset, devices, selected, severity)
    for device in selected:
        yield from _interface_programs(device, devices.values())


def _flowtables(ruleset: Ruleset) -> Iterator[Finding]:
    for table in ruleset.flowtables[:_MAX_REPORTED]:
        shown = visible(", ".join(table.devices[:_MAX_REPORTED]) or "no interface yet")
        yield Finding(
            name="flowtable",
            severity="degraded",
            meaning=visible(f"flowtable {table.name} of table {table.family} {table.table}")
            + f" ({shown}): its flows skip every forward chain, so flows that are already open "
            "continue even if a fence refuses them later",
            remedy="remove the interfaces of VMs from it",
            location=RuleLocation(
                backend="nft", family=visible(table.family), table=visible(table.table)
            ),
        )


def _rules(ruleset: Ruleset) -> Iterator[Finding]:
    for chain in ruleset.chains.values():
        if firewalls.is_ours(chain.key):
            continue
        _backend, family, table, name = chain.key
        for rule in chain.rules:
            kinds = {kind for kind, _ in rule.statements}
            for kind, effect in _EFFECTS.items():
                if kind not in kinds:
                    continue
                position = visible(f"a rule in table {family} {table}, chain {name}")
                yield Finding(
                    name="notrack" if kind == "notrack" else "takes-packets",
                    severity="info",
                    meaning=f"{position} {effect}",
                    location=RuleLocation.of_chain(chain.key, handle=rule.handle),
                )


def _bridge_ports(
    ruleset: Ruleset,
    devices: Mapping[str, NetDevice],
    selected: Iterable[NetDevice],
    severity: Severity,
) -> Iterator[Finding]:
    names = {device.ifindex: device.name for device in devices.values()}
    has_rules = any(
        chain.key.family == "bridge" and chain.base is not None for chain in ruleset.chains.values()
    )
    for device in selected:
        if device.master is None:
            continue
        master = visible(names.get(device.master, f"index {device.master}"))
        yield Finding(
            name="bridge-port",
            severity=severity,
            meaning=f"{visible(device.name)} is a port of {master}: packets between its ports "
            "pass no IP hook, so a fence on this interface doesn't see them"
            + (", and the rules of family bridge are not judged here" if has_rules else ""),
            remedy="remove it from the bridge, and route its traffic",
        )


def _interface_programs(device: NetDevice, others: Iterable[NetDevice]) -> Iterator[Finding]:
    name = visible(device.name)
    if device.has_xdp:
        yield Finding(
            name="xdp",
            severity="info",
            meaning=f"an XDP program is attached to {name}: it sees packets before every "
            "rule, and may drop them or forward them",
        )
    if device.has_filters:
        yield Finding(
            name="tc",
            severity="info",
            meaning=f"{name} has a queue for traffic-control programs (clsact or ingress): "
            "they may drop packets, or forward them past every rule",
        )
    above = [
        other.name
        for other in others
        if other.lower == device.ifindex and other.kind in _STACKED and not other.is_lower_elsewhere
    ]
    if above:
        yield Finding(
            name="shared-link",
            severity="degraded",
            meaning=f"{visible(', '.join(above[:_MAX_REPORTED]))}: stacked on {name}, so "
            "rules see their traffic under their own names, and in their own namespaces",
            remedy="fence them too; interfaces in other namespaces can't be listed from here",
        )
    if device.kind in _STACKED and device.is_lower_elsewhere:
        yield Finding(
            name="shared-link",
            severity="info",
            meaning=f"{name} is stacked on an interface of another namespace, which other "
            "interfaces there may share",
        )


def _selected(devices: Mapping[str, NetDevice], scope: CheckScope) -> Iterator[NetDevice]:
    of_vm = None if scope.device is None else interface(scope.device)
    for device in devices.values():
        is_of_vm = of_vm is not None and of_vm.equals(device.name) is not Truth.NO
        if is_of_vm or device.name in scope.links.values():
            yield device
