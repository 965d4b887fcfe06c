"""Sentences of a Network Activity event: the message for people, and the advice for the program.

The sentences contain only facts from the records and the counters. Names come from outside, so
their invisible characters are escaped first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import attribution_enrichment, packet_outcome, protocols
from ocsf_nft.ocsf.actors import name_of
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.remediation import advice, general_advice
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.services import service
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from ocsf_nft.attempt import Aggregation, Attempt
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import ForeignVerdict, Record

_ANSWER_TEXTS: Final = {
    Answer.RESET: "refused with a reset",
    Answer.PROHIBITED: "refused with an ICMP error",
    Answer.NOTHING: "dropped without an answer",
    Answer.PERMITTED: "let pass, because the fence is permissive: it would have been refused",
    None: "refused",
}
_VERDICT_TEXTS: Final[dict[ForeignVerdict, str]] = {
    "reject": "refused",
    "drop": "dropped",
    "accept": "let pass",
    "log": "logged, and no more is known",
}
#: Introduction of the advice if the packet was allowed.
_THEN: Final = "Once the fence refuses:"
_DETAILS: Final = {
    Answer.RESET: "The connection was refused by the sandbox's fence, not by the network.",
    Answer.PROHIBITED: "The packet was refused by the sandbox's fence, not lost in the network.",
    Answer.NOTHING: "The packet was dropped by the sandbox's fence, not lost in the network.",
    Answer.PERMITTED: (
        "The packet was let pass, because the sandbox's fence is permissive: it would have been "
        f"refused. {_THEN}"
    ),
}
_REFUSED: Final = "refused by the sandbox's fence, not lost in the network."
_AGGREGATE_DETAILS: Final = {
    Answer.RESET: _REFUSED,
    Answer.PROHIBITED: _REFUSED,
    Answer.NOTHING: "dropped by the sandbox's fence, not lost in the network.",
    Answer.PERMITTED: (
        "let pass, because the sandbox's fence is permissive: they would have been refused. "
        f"{_THEN}"
    ),
    None: _REFUSED,
}
_WHERE: Final = {
    packet_outcome.VM_FORWARD: "through its host",
    packet_outcome.VM_INPUT: "on its host",
}
_ARP: Final = 0x0806
_ETHERTYPES: Final = {_ARP: "an ARP frame"}
_REASONS: Final = {
    "many": "{who} has more flows than are told one by one",
    "unplaced": "they found no place in the kernel's bounded sets of flows",
    "evicted": (
        "the kernel forgot which flows they were, or somebody made it forget, before anybody had "
        "read the counts, so nobody knows who sent them"
    ),
}
#: Usual names of protocols, where they differ from IANA's names.
_USUAL_NAMES: Final = {4: "IP in IP", protocols.ICMPV6: "ICMPv6", 41: "IPv6 in IP"}
#: Maximum length of a process name in a sentence.
_NAME_CHARACTERS: Final = 64


def message(attempt: Attempt, direction: Direction, answer: Answer | None) -> str:
    """Return one sentence: who sent what, how often, and the fence's answer."""
    if attempt.aggregation is None:
        times = "" if attempt.packets == 1 else f", {attempt.packets} times"
        sent = f"{_single_text(attempt.record, direction, attempt.attribution)}{times}"
    else:
        sent = _aggregate_text(attempt, direction, attempt.aggregation)
    foreign = packet_outcome.foreign_verdict(attempt.record)
    return f"{sent}; {_ANSWER_TEXTS[answer] if foreign is None else _VERDICT_TEXTS[foreign]}"


def sender_text(
    sandbox: str, uid: int | None, by: Attribution | None = None, *, rule: str = ""
) -> str:
    """Return the known facts about a sender in a sandbox, as text.

    ``rule`` is the rule that refused the packet. A rule of a VM makes the VM the sender.
    """
    name = f"sandbox {visible(sandbox)}"
    if rule in VM_RULES:
        name = f"the VM of {name}"
    user = "" if uid is None else f"uid {uid}"
    sender = user if by is None else _process_or_user(by, user)
    return f"{sender} in {name}" if sender else name


def _process_or_user(by: Attribution, user: str) -> str:
    others = attribution_enrichment.count_others(by)
    if by.process is not None:
        name = _process_name(by.process)
        if others:
            name = f"{name} and {others} more"
        return f"{name} ({user})" if user else name
    if others < 2:  # at most one process is possible, and it is not named
        return user
    was_each = all(each.calls is not None for each in by.seen)
    several = attribution_enrichment.count_text(others, was_each=was_each)
    return f"{several} of {user}" if user else several


def _process_name(process: Process) -> str:
    name = name_of(process) or "process "
    if len(name) > _NAME_CHARACTERS:
        name = f"{name[: _NAME_CHARACTERS - 1]}…"
    return f"{name}[{process.pid}]"


def counted(number: int, what: str) -> str:
    """Return a number with its noun, whose plural is regular: "3 packets"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def elapsed(since_ns: int, until_ns: int) -> str:
    """Return the time between two timestamps (ns) as text; zero if the clock was set back."""
    milliseconds = max(0, until_ns - since_ns) // 1_000_000
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _single_text(record: Record, direction: Direction, by: Attribution | None) -> str:
    """Return who sent what, without the fence's answer."""
    packet = _packet(record)
    if record.sandbox is None or not packet_outcome.is_attempt(record):
        rule = f'rule "{visible(record.rule)}"' if record.rule else "a rule without a name"
        return f"{packet} from {_source(record)} matched {rule}"
    if direction is Direction.INBOUND:
        return (
            f"{_source(record)} sent {sender_text(record.sandbox, None, rule=record.rule)} {packet}"
        )
    sender = sender_text(record.sandbox, record.uid, by, rule=record.rule)
    if record.rule == packet_outcome.VM_LINK:
        # The rule may have refused the packet because of its source address.
        of = "" if record.source is None else f" from {visible(record.source)}"
        mac = "" if record.mac_source is None else f" by {visible(record.mac_source)}"
        return f"{sender} sent {packet}{of}{mac}"
    if record.rule == packet_outcome.FORWARD:
        if record.source is record.mac_source is None:
            return f"somebody tried to pass {packet} through {sender_text(record.sandbox, None)}"
        sender = f"{_source(record)}, behind {sender_text(record.sandbox, None)},"
    if record.destination is None:
        return f"{sender} sent {packet}"
    return f"{sender} tried {packet} {_WHERE.get(record.rule, 'directly')}"


def _aggregate_text(attempt: Attempt, direction: Direction, aggregation: Aggregation) -> str:
    record, packets = attempt.record, counted(attempt.packets, "packet")
    name = record.prefix if record.sandbox is None else record.sandbox
    if (kind := _kind(record)) is not None:
        packets = f"{packets} ({kind})"
    if aggregation.flows is not None:
        flows = f"in at least {counted(aggregation.flows, 'other flow')}"
    else:
        flows = "in other flows" if aggregation.reason == "many" else "in flows that nobody knows"
    if direction is Direction.INBOUND:
        return f"somebody sent {sender_text(name, None, rule=record.rule)} {packets} {flows}"
    if record.rule == packet_outcome.FORWARD:
        return f"somebody tried to pass {packets} through {sender_text(name, None)} {flows}"
    return (
        f"{sender_text(name, record.uid, attempt.attribution, rule=record.rule)} "
        f"sent {packets} {flows}"
    )


def _kind(record: Record) -> str | None:
    if record.protocol is not None:
        return _protocol(record.protocol)
    if record.ip_version is not None:
        return f"IPv{record.ip_version}"
    if record.ethertype is None:
        return None
    return "ARP" if record.ethertype == _ARP else f"frames of type {record.ethertype:#06x}"


def detail(
    attempt: Attempt,
    direction: Direction,
    answer: Answer | None,
    proxy: Proxy | None,
    destination: AddressKind | None,
) -> str | None:
    """Return an explanation for the sender and an alternative; None for a foreign rule."""
    if attempt.aggregation is not None:
        return _detail_of_many(attempt.record, attempt.aggregation, direction, answer, proxy)
    record = attempt.record
    if answer is None:
        return None
    return f"{_DETAILS[answer]} {advice(record, direction, proxy, destination)}"


def _detail_of_many(
    record: Record,
    aggregation: Aggregation,
    direction: Direction,
    answer: Answer | None,
    proxy: Proxy | None,
) -> str:
    # Users without a limit of their own share one limit: then the user is unknown.
    user = "somebody" if record.uid is None else f"uid {record.uid}"
    explanation = (
        f"These packets are told together because {_REASONS[aggregation.reason].format(who=user)}. "
        f"They were {_AGGREGATE_DETAILS[answer]}"
    )
    return f"{explanation} {general_advice(record.rule, direction, proxy)}"


def _packet(record: Record) -> str:
    if record.destination is None:
        return _ETHERTYPES.get(record.ethertype or 0) or (
            "a frame" if record.ethertype is None else f"a frame of type {record.ethertype:#06x}"
        )
    end = _end(record.destination, record.destination_port)
    known = service(record.protocol, record.destination_port)
    name = (
        "ping" if packet_outcome.is_echo_request(record) else None if known is None else known.name
    )
    return f"{_protocol(record.protocol)} to {end}{'' if name is None else f' ({name})'}"


def _protocol(number: int | None) -> str:
    if number is None:
        return "IP"
    name = protocols.NAMES.get(number)
    return _USUAL_NAMES.get(number) or (f"IP protocol {number}" if name is None else name.upper())


def _source(record: Record) -> str:
    if record.source is not None:
        return _end(record.source, record.source_port)
    return "an unknown sender" if record.mac_source is None else visible(record.mac_source)


def _end(address: str, port: int | None) -> str:
    if port is None:
        return visible(address)
    return f"[{visible(address)}]:{port}" if ":" in address else f"{visible(address)}:{port}"
