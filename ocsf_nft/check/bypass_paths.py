"""What would get past a fence, or take packets before it sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.check import chain_owner
from ocsf_nft.check.finding import Finding, Place
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.devices import Device
    from ocsf_nft.check.diagnosis import Question
    from ocsf_nft.check.ruleset import Chain, Ruleset

_TOLD: Final = 8
_TAKING: Final = {"fwd": "sends packets on to another interface", "dup": "copies packets"}
_STACKED: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"})


def ways_past(
    ruleset: Ruleset, devices: Mapping[str, Device], question: Question
) -> Iterator[Finding]:
    """Rules of others, and what is bound to the interfaces of a VM or a sandbox."""
    yield from _flowtables(ruleset)
    yield from _rules(ruleset)
    yield from _of_bridges(ruleset, devices, question)
    yield from _bound(devices, question)


def _flowtables(ruleset: Ruleset) -> Iterator[Finding]:
    for table in ruleset.flowtables[:_TOLD]:
        shown = visible(", ".join(table.devices[:_TOLD]) or "no interface yet")
        yield Finding(
            name="flowtable",
            severity="degraded",
            meaning=visible(f"flowtable {table.name} of table {table.family} {table.table}")
            + f" ({shown}): flows in it skip every forward chain, so what a fence refuses later "
            "goes on in flows that are open by then",
            remedy="leave the interfaces of VMs out of it",
            place=Place(backend="nft", family=visible(table.family), table=visible(table.table)),
        )


def _rules(ruleset: Ruleset) -> Iterator[Finding]:
    told = 0
    for chain in ruleset.chains.values():
        if chain_owner.is_ours(chain.key):
            continue
        for rule in chain.rules:
            kinds = {kind for kind, _ in rule.statements}
            for kind, what in _TAKING.items():
                if kind in kinds and told < _TOLD:
                    told += 1
                    yield _rule("takes-packets", chain, rule.handle, f"{what}, past a fence")
            if "notrack" in kinds and told < _TOLD:
                told += 1
                yield _rule(
                    "notrack", chain, rule.handle,
                    "keeps packets from connection tracking: a VM's replies among them would not "
                    "be known as such, and be dropped",
                )  # fmt: skip


def _rule(name: str, chain: Chain, handle: int | None, what: str) -> Finding:
    key = chain.key
    return Finding(
        name=name,
        severity="info",
        meaning=visible(f"a rule in table {key.family} {key.table}, chain {key.name} ") + what,
        place=Place(
            backend=key.backend,
            family=visible(key.family),
            table=visible(key.table),
            chain=visible(key.name),
            handle=handle,
        ),
    )


def _of_bridges(
    ruleset: Ruleset, devices: Mapping[str, Device], question: Question
) -> Iterator[Finding]:
    names = {device.ifindex: device.name for device in devices.values()}
    has_rules = any(
        chain.key.family == "bridge" and chain.base is not None for chain in ruleset.chains.values()
    )
    for device in _concerned(devices, question):
        if device.master is None:
            continue
        master = visible(names.get(device.master, f"index {device.master}"))
        yield Finding(
            name="bridge-port",
            severity="degraded",
            meaning=f"{visible(device.name)} is a port of {master}: between its ports packets "
            "pass no hook of IP, so a fence by this interface's name doesn't see them"
            + (", and the rules of family bridge are not judged here" if has_rules else ""),
            remedy="take it out of the bridge, and route it",
        )


def _bound(devices: Mapping[str, Device], question: Question) -> Iterator[Finding]:
    for device in _concerned(devices, question):
        name = visible(device.name)
        if device.has_xdp:
            yield Finding(
                name="xdp",
                severity="info",
                meaning=f"an XDP program is attached to {name}: it sees packets before every "
                "rule, and may drop them or send them on",
            )
        if device.has_filters:
            yield Finding(
                name="tc",
                severity="info",
                meaning=f"{name} has a queue for traffic-control programs (clsact or ingress): "
                "they may drop packets, or send them past every rule",
            )
        above = [
            other.name
            for other in devices.values()
            if other.lower == device.ifindex
            and other.kind in _STACKED
            and not other.is_lower_elsewhere
        ]
        if above:
            yield Finding(
                name="shared-link",
                severity="degraded",
                meaning=f"{visible(', '.join(above[:_TOLD]))}: stacked on {name}, so what "
                "they send passes the rules by their own name, and in their own namespace",
                remedy="fence them too; the ones in other namespaces can't be seen from here",
            )
        if device.kind in _STACKED and device.is_lower_elsewhere:
            yield Finding(
                name="shared-link",
                severity="info",
                meaning=f"{name} is stacked on a link of another namespace, which others there "
                "may share",
            )


def _concerned(devices: Mapping[str, Device], question: Question) -> list[Device]:
    """The interfaces that are a VM's or lead to a proxy, as many as are worth telling."""
    found = []
    for device in devices.values():
        wanted = question.device
        is_meant = wanted is not None and (
            device.name.startswith(wanted[:-1]) if wanted.endswith("*") else device.name == wanted
        )
        if is_meant or device.name in question.links.values():
            found.append(device)
    return found[:_TOLD]
