"""The sentences of an event: what happened, for a person, and what the program is to make of it.

They say what the records and the counters say and no more. Names come from outside and are made
visible first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import attribution_enrichment, packet_outcome, protocols
from ocsf_nft.ocsf.actors import name_of
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.remediation import advice, in_general
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.services import service
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from ocsf_nft.attempt import Aggregation, Attempt
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import ForeignVerdict, Record

_ANSWERED: Final = {
    Answer.RESET: "refused with a reset",
    Answer.PROHIBITED: "refused with an ICMP error",
    Answer.NOTHING: "dropped without an answer",
    Answer.PERMITTED: "let pass, because the fence is permissive: it would have been refused",
    None: "refused",
}
_DONE: Final[dict[ForeignVerdict, str]] = {
    "reject": "refused",
    "drop": "dropped",
    "accept": "let pass",
    "log": "logged, and no more is known",
}
#: Before what to do instead of what was let pass.
_THEN: Final = "Once the fence refuses:"
_TELLS: Final = {
    Answer.RESET: "The connection was refused by the sandbox's fence, not by the network.",
    Answer.PROHIBITED: "The packet was refused by the sandbox's fence, not lost in the network.",
    Answer.NOTHING: "The packet was dropped by the sandbox's fence, not lost in the network.",
    Answer.PERMITTED: (
        "The packet was let pass, because the sandbox's fence is permissive: it would have been "
        f"refused. {_THEN}"
    ),
}
_REFUSED: Final = "refused by the sandbox's fence, not lost in the network."
_TOLD_OF_MANY: Final = {
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
_WHYS: Final = {
    "many": "{who} has more flows than are told one by one",
    "unplaced": "they found no place in the kernel's bounded sets of flows",
    "forgotten": (
        "the kernel forgot which flows they were, or somebody made it forget, before anybody had "
        "read the counts, so nobody knows who sent them"
    ),
}
#: Protocols that people call by another name than IANA's.
_CALLED: Final = {4: "IP in IP", protocols.ICMPV6: "ICMPv6", 41: "IPv6 in IP"}
#: More of a name than this does not help a sentence.
_NAME_CHARACTERS: Final = 64


def message(attempt: Attempt, way: Direction, answered: Answer | None) -> str:
    """What happened, and how often, in one sentence."""
    if attempt.aggregation is None:
        times = "" if attempt.packets == 1 else f", {attempt.packets} times"
        deed = f"{_deed(attempt.record, way, attempt.attribution)}{times}"
    else:
        deed = _deeds(attempt, way, attempt.aggregation)
    foreign = packet_outcome.foreign_verdict(attempt.record)
    return f"{deed}; {_ANSWERED[answered] if foreign is None else _DONE[foreign]}"


def who(sandbox: str, uid: int | None, by: Attribution | None = None, *, rule: str = "") -> str:
    """Who sent something from inside a sandbox, by all that is known; ``rule`` refused it."""
    name = f"sandbox {visible(sandbox)}"
    if rule in VM_RULES:
        name = f"the VM of {name}"
    user = "" if uid is None else f"uid {uid}"
    sender = user if by is None else _sender(by, user)
    return f"{sender} in {name}" if sender else name


def _sender(by: Attribution, user: str) -> str:
    others = attribution_enrichment.others_than_the_one(by)
    if by.process is not None:
        called = _called(by.process)
        if others:
            called = f"{called} and {others} more"
        return f"{called} ({user})" if user else called
    if others < 2:  # there is no more than one that it may have been
        return user
    was_each = all(each.calls is not None for each in by.seen)
    several = attribution_enrichment.in_words(others, was_each=was_each)
    return f"{several} of {user}" if user else several


def _called(process: Process) -> str:
    name = name_of(process) or "process "
    if len(name) > _NAME_CHARACTERS:
        name = f"{name[: _NAME_CHARACTERS - 1]}…"
    return f"{name}[{process.pid}]"


def counted(number: int, what: str) -> str:
    """So many of something that has a regular plural."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def elapsed(since_ns: int, until_ns: int) -> str:
    """The time between two moments in ns; none when a clock was set back."""
    milliseconds = max(0, until_ns - since_ns) // 1_000_000
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _deed(record: Record, way: Direction, by: Attribution | None) -> str:
    """Who did what."""
    packet = _packet(record)
    if record.sandbox is None or not packet_outcome.is_attempt(record):
        rule = f'rule "{visible(record.rule)}"' if record.rule else "a rule without a name"
        return f"{packet} from {_source(record)} matched {rule}"
    if way is Direction.INBOUND:
        return f"{_source(record)} sent {who(record.sandbox, None, rule=record.rule)} {packet}"
    sender = who(record.sandbox, record.uid, by, rule=record.rule)
    if record.rule == packet_outcome.VM_LINK:
        # In whose name it is may be what is wrong with it.
        of = "" if record.source is None else f" from {visible(record.source)}"
        mac = "" if record.mac_source is None else f" by {visible(record.mac_source)}"
        return f"{sender} sent {packet}{of}{mac}"
    if record.rule == packet_outcome.FORWARD:
        if record.source is record.mac_source is None:
            return f"somebody tried to pass {packet} through {who(record.sandbox, None)}"
        sender = f"{_source(record)}, behind {who(record.sandbox, None)},"
    if record.destination is None:
        return f"{sender} sent {packet}"
    return f"{sender} tried {packet} {_WHERE.get(record.rule, 'directly')}"


def _deeds(attempt: Attempt, way: Direction, merged: Aggregation) -> str:
    record, packets = attempt.record, counted(attempt.packets, "packet")
    name = record.prefix if record.sandbox is None else record.sandbox
    if (kind := _kind(record)) is not None:
        packets = f"{packets} ({kind})"
    if merged.flows is not None:
        flows = f"in at least {counted(merged.flows, 'other flow')}"
    else:
        flows = "in other flows" if merged.reason == "many" else "in flows that nobody knows"
    if way is Direction.INBOUND:
        return f"somebody sent {who(name, None, rule=record.rule)} {packets} {flows}"
    if record.rule == packet_outcome.FORWARD:
        return f"somebody tried to pass {packets} through {who(name, None)} {flows}"
    return f"{who(name, record.uid, attempt.attribution, rule=record.rule)} sent {packets} {flows}"


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
    way: Direction,
    answered: Answer | None,
    proxy: Proxy | None,
    destination: Place | None,
) -> str | None:
    """What the sender is to make of it, and what to do instead; None for a foreign rule."""
    if attempt.aggregation is not None:
        return _detail_of_many(attempt.record, attempt.aggregation, way, answered, proxy)
    record = attempt.record
    if answered is None:
        return None
    return f"{_TELLS[answered]} {advice(record, way, proxy, destination)}"


def _detail_of_many(
    record: Record,
    merged: Aggregation,
    way: Direction,
    answered: Answer | None,
    proxy: Proxy | None,
) -> str:
    # Where there are more users than bounds of their own, one bound is for the rest of them.
    who_has = "somebody" if record.uid is None else f"uid {record.uid}"
    tells = (
        f"These packets are told together because {_WHYS[merged.reason].format(who=who_has)}. "
        f"They were {_TOLD_OF_MANY[answered]}"
    )
    return f"{tells} {in_general(record.rule, way, proxy)}"


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
    return _CALLED.get(number) or (f"IP protocol {number}" if name is None else name.upper())


def _source(record: Record) -> str:
    if record.source is not None:
        return _end(record.source, record.source_port)
    return "an unknown sender" if record.mac_source is None else visible(record.mac_source)


def _end(address: str, port: int | None) -> str:
    if port is None:
        return visible(address)
    return f"[{visible(address)}]:{port}" if ":" in address else f"{visible(address)}:{port}"
