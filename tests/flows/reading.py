"""Readings and records for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.flow import KINDS, Count, Element, Key, Reading, RuleReading, key_of
from ocsf_nft.flows import codec
from ocsf_nft.state.change import AccountChange
from tests.flows.kernel_model import RULE, START_NS, Packet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.flows.sandbox_account import SandboxAccount
    from ocsf_nft.record import Record

SECOND: Final = 1_000_000_000
NOW: Final = START_NS


def tcp(port: int = 80, destination: str = "192.0.2.1", uid: int | None = 1000) -> Packet:
    return Packet(uid=uid, protocol=6, destination=destination, port=port)


def key(packet: Packet) -> Key:
    return key_of(packet.record(0, 0))


def record(packet: Packet, number: int = 1, at_ns: int = NOW) -> Record:
    return packet.record(number, at_ns)


def reading(
    counts: Mapping[Key, int],
    at_ns: int = NOW,
    *,
    at_ms: int | None = None,
    refused: int | None = None,
    overflow: int = 0,
    idle_ms: int = 0,
    epoch: str = "boot:1",
    octets: int = 60,
) -> Reading:
    """Return a reading of elements; ``refused`` is the total if it is more than their sum.

    ``at_ms`` is the monotonic time; by default the wall clock was never set.
    """
    at_ms = at_ns // 1_000_000 if at_ms is None else at_ms
    total = sum(counts.values()) + overflow if refused is None else refused
    return Reading(
        epochs={RULE: epoch},
        began_ns=at_ns,
        ended_ns=at_ns,
        began_ms=at_ms,
        ended_ms=at_ms,
        rules={
            RULE: RuleReading(
                refused_before=Count(total, total * octets),
                refused=Count(total, total * octets),
                overflow=Count(overflow, overflow * octets),
                elements={
                    kind: tuple(
                        Element(each.data, packets, packets * octets, idle_ms)
                        for each, packets in counts.items()
                        if each.kind == kind
                    )
                    for kind in KINDS
                },
            )
        },
    )


def observe(account: SandboxAccount, *readings: Reading) -> None:
    for each in readings:
        for rule in account.rules.values():  # as after a commit
            for key_of_flow in rule.counters.touched:
                rule.counters.rest(key_of_flow)
        for _ in account.observe(each):
            pass


def on_demand(account: SandboxAccount, found: Reading) -> Reading:
    """Return a reading without the flows, or rules, that a service would not read.

    These are the flows of rules whose total has grown by the packets of log records alone.
    """
    explained = account.explained_packets(found.began_ms)
    rules = dict(found.rules)
    for name, of_rule in found.rules.items():
        last, packets = account.rules.get(name), explained.get(name)
        if last is None or last.counter_id.epoch != found.epochs[name] or packets is None:
            continue
        before = last.counters.refused
        if packets == 0 and before == of_rule.refused_before == of_rule.refused:
            rules[name] = replace(of_rule, elements=None)
        elif packets and before.packets + packets == of_rule.refused.packets:
            del rules[name]
    epochs = {name: found.epochs[name] for name in rules}
    return replace(found, rules=rules, epochs=epochs, explained=found.rules.keys() - rules.keys())


def attempts(found: Iterable[Attempt | FanOut | IncidentEnd]) -> list[Attempt]:
    return [each for each in found if isinstance(each, Attempt)]


def ended(found: Iterable[Attempt | FanOut | IncidentEnd]) -> list[IncidentEnd]:
    return [each for each in found if isinstance(each, IncidentEnd)]


def changes(account: SandboxAccount) -> AccountChange:
    """Return the changes of an account since the last call."""
    found = AccountChange(account.sandbox)
    for _ in codec.collect(account, found):
        pass
    return found
