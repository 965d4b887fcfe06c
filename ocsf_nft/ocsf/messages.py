"""Sentences of a Network Activity event: a message for people, and advice for the packets' sender.

A process can choose some names in the sentences, for example its own name. So invisible characters
in names are escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome, protocols
from ocsf_nft.ocsf.actors import count_others, count_text, name_of
from ocsf_nft.ocsf.dns_queries import questions_text
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.protocols import service, usual_name
from ocsf_nft.ocsf.remediation import advice, general_advice
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from ocsf_nft.attempt import Aggregation, AggregationReason, Attempt
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import ForeignVerdict, Record

#: First word of a message, and its end, by the fence's answer.
OUTCOMES: Final[dict[Answer | None, tuple[str, str]]] = {
    Answer.RESET: ("Blocked", "; answered with a TCP reset"),
    Answer.PROHIBITED: ("Blocked", "; answered with an ICMP error"),
    Answer.NOTHING: ("Dropped", ""),
    Answer.PERMITTED: ("Allowed", ", because the fence is permissive"),
    None: ("Blocked", ""),
}
_FOREIGN_OUTCOMES: Final[dict[ForeignVerdict, tuple[str, str]]] = {
    "reject": ("Blocked", ""),
    "drop": ("Dropped", ""),
    "accept": ("Allowed", ""),
    "log": ("Logged", "; the verdict is unknown"),
}
_BLOCKED: Final = "The sandbox's fence blocked this traffic; the network did not fail."
_DETAILS: Final[dict[Answer | None, str]] = {
    Answer.RESET: _BLOCKED,
    Answer.PROHIBITED: _BLOCKED,
    Answer.NOTHING: "The sandbox's fence dropped this traffic; the network did not fail.",
    Answer.PERMITTED: (
        "The sandbox's fence is permissive and allowed this traffic, which it would block "
        "otherwise."
    ),
    None: _BLOCKED,
}
_WHERE: Final = {
    packet_outcome.VM_FORWARD: " through its host",
    packet_outcome.VM_INPUT: " on its host",
}
_REASONS: Final[dict[AggregationReason, str]] = {
    "many": "{user} has more flows than are reported one by one",
    "unplaced": "the kernel's sets of flows had no free entry",
    "evicted": (
        "the kernel or another process deleted the entries of their flows before the counters "
        "were read, so their senders are unknown"
    ),
}
#: Maximum length of a process name in a sentence.
_NAME_CHARACTERS: Final = 64


def message(attempt: Attempt, direction: Direction, answer: Answer | None) -> str:
    """Return the event's sentence for people: outcome, packets, sender and destination.

    ``answer`` is the fence's answer to the sender, for example a TCP reset; None if unknown.
    """
    foreign = packet_outcome.foreign_verdict(attempt.record)
    outcome, end = OUTCOMES[answer] if foreign is None else _FOREIGN_OUTCOMES[foreign]
    if attempt.aggregation is None:
        packets = _single_text(attempt, direction)
    else:
        packets = _aggregate_text(attempt, direction, attempt.aggregation)
    # For example "Dropped 3 UDP packets from uid 1000 in sandbox agent to 192.0.2.1:53 (domain)",
    # and for one DNS name ": A example.com".
    return f"{outcome} {packets}{questions_text(attempt.questions)}{end}"


def sender_text(
    sandbox: str, uid: int | None, by: Attribution | None = None, *, rule: str = ""
) -> str:
    """Return the sender of packets as text, for example "uid 1000 in sandbox agent".

    ``by`` is the attribution; the text includes its process, if known. ``rule`` is the name of the
    matched firewall rule. For a VM's rule, such as ``vm-forward``, "the VM of sandbox agent"
    replaces "sandbox agent".
    """
    name = f"sandbox {visible(sandbox)}"
    if rule in VM_RULES:
        name = f"the VM of {name}"
    user = "" if uid is None else f"uid {uid}"
    sender = user if by is None else _process_or_user(by, user)
    return f"{sender} in {name}" if sender else name


def _process_or_user(by: Attribution, user: str) -> str:
    others = count_others(by)
    if by.process is not None:
        name = f"{short_name(by.process) or 'process '}[{by.process.pid}]"
        if others:
            name = f"{name} and {counted(others, 'other process', 'other processes')}"
        return f"{name} ({user})" if user else name
    if others < 2:  # at most one process is possible, and it is not named
        return user
    was_each = bool(by.seen) and all(each.calls is not None for each in by.seen)
    several = count_text(others, was_each=was_each)
    return f"{several} of {user}" if user else several


def short_name(process: Process) -> str | None:
    """Return the name of a process for a sentence, with at most 64 characters; None if unknown."""
    name = name_of(process)
    if name is None or len(name) <= _NAME_CHARACTERS:
        return name
    return f"{name[: _NAME_CHARACTERS - 1]}…"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, for example "3 packets".

    ``noun`` is the singular. ``plural`` is needed only if the plural does not just add an "s".
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def elapsed(since_ns: int, until_ns: int) -> str:
    """Return the time between two timestamps as text, for example "3 ms" or "1.5 s".

    If the clock was set back between them, the result is "0 ms".
    """
    milliseconds = max(0, until_ns - since_ns) // 1_000_000
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _single_text(attempt: Attempt, direction: Direction) -> str:
    # For example "3 UDP packets from uid 1000 in sandbox agent to 192.0.2.1:53"
    record, number = attempt.record, attempt.packets
    noun, destination = _noun(record, number), destination_text(record)
    if number > 1:
        noun = counted(number, noun)
    if record.sandbox is None or not packet_outcome.is_attempt(record):
        rule = f'rule "{visible(record.rule)}"' if record.rule else "a rule without a name"
        return f"{noun} from {_source(record)}{destination} by {rule}"
    sandbox = sender_text(record.sandbox, None, rule=record.rule)
    if direction is Direction.INBOUND:
        to = f"{destination} in" if destination else " to"
        return f"{noun} from {_source(record)}{to} {sandbox}"
    if record.rule == packet_outcome.FORWARD:
        return f"{noun} from {_source(record)}{destination} through {sandbox}"
    sender = sender_text(record.sandbox, record.uid, attempt.attribution, rule=record.rule)
    if record.rule == packet_outcome.VM_LINK:
        noun += _link_sources(record)
    return f"{noun} from {sender}{destination}{_WHERE.get(record.rule, '')}"


def _link_sources(record: Record) -> str:
    """Return a VM's source addresses, for example " (source 10.0.0.9, MAC 02:00:00:00:00:02)"."""
    sources = {"source": record.source, "MAC": record.mac_source}
    known = [f"{name} {visible(value)}" for name, value in sources.items() if value is not None]
    return f" ({', '.join(known)})" if known else ""


def _aggregate_text(attempt: Attempt, direction: Direction, aggregation: Aggregation) -> str:
    record, kind = attempt.record, _kind(attempt.record)
    name = record.prefix if record.sandbox is None else record.sandbox
    packets = counted(attempt.packets, "packet" if kind is None else f"{kind} packet")
    if aggregation.flows is not None:
        flows = f"at least {counted(aggregation.flows, 'other flow')}"
    else:
        flows = "other flows" if aggregation.reason == "many" else "unknown flows"
    sandbox = sender_text(name, None, rule=record.rule)
    if direction is Direction.INBOUND:
        return f"{packets} in {flows} to {sandbox}"
    if record.rule == packet_outcome.FORWARD:
        return f"{packets} in {flows} through {sandbox}"
    sender = sender_text(name, record.uid, attempt.attribution, rule=record.rule)
    return f"{packets} in {flows} from {sender}"


def _kind(record: Record) -> str | None:
    """Return the kind of packets, such as "TCP" or "ARP"; None if they are of several kinds."""
    if record.protocol is not None:
        return usual_name(record.protocol)
    if record.ip_version is not None:
        return f"IPv{record.ip_version}"
    return None if record.ethertype is None else _ethertype(record.ethertype)


def _ethertype(number: int) -> str:
    return "ARP" if number == protocols.ETHERTYPE_ARP else f"ethertype {number:#06x}"


def detail(
    attempt: Attempt,
    direction: Direction,
    answer: Answer | None,
    proxy: Proxy | None,
    destination: AddressKind | None,
) -> str | None:
    """Return a text with explanation and advice for the program whose packets the fence refused.

    ``attempt`` describes the packets. ``answer`` is the fence's reaction, for example a TCP reset.
    If ``answer`` is None (unknown), the result may be None.
    """
    record, aggregation = attempt.record, attempt.aggregation
    if aggregation is not None:  # packets of several flows always get a general text
        # Users without a limit of their own share one limit: then the user is unknown.
        user = "an unknown user" if record.uid is None else f"uid {record.uid}"
        reason = _REASONS[aggregation.reason].format(user=user)
        return (
            f"These packets are aggregated, because {reason}. {_DETAILS[answer]} "
            f"{general_advice(record.rule, direction, proxy)}"
        )
    if answer is None:
        return None
    return f"{_DETAILS[answer]} {advice(record, direction, proxy, destination)}"


def _noun(record: Record, number: int) -> str:
    """Return the noun for a logged packet, such as "UDP packet" or "frame".

    The noun is "TCP connection" if the packet opens a connection, and is the only packet of its
    flow (``number`` is 1).
    """
    if record.destination is None:
        return "frame" if record.ethertype is None else f"{_ethertype(record.ethertype)} frame"
    is_tcp = record.protocol == protocols.TCP
    if is_tcp and number == 1 and packet_outcome.is_initiator_known(record):
        return "TCP connection"
    return f"{'IP' if record.protocol is None else usual_name(record.protocol)} packet"


def destination_text(record: Record) -> str:
    """Return a packet's destination, as in " to 192.0.2.1:443 (https)"; empty without IP."""
    if record.destination is None:
        return ""
    known = service(record.protocol, record.destination_port)
    name = None if known is None else known.name
    if packet_outcome.is_echo_request(record):
        name = "ping"
    end = _end(record.destination, record.destination_port)
    return f" to {end}" if name is None else f" to {end} ({name})"


def _source(record: Record) -> str:
    if record.source is not None:
        return _end(record.source, record.source_port)
    return "an unknown sender" if record.mac_source is None else visible(record.mac_source)


def _end(address: str, port: int | None) -> str:
    if port is None:
        return visible(address)
    return f"[{visible(address)}]:{port}" if ":" in address else f"{visible(address)}:{port}"
