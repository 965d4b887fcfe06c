"""What a record or a rule means: which way it went, what the answer was, how much it matters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf import protocols
from ocsf_nft.ocsf.enums import (
    Action,
    Direction,
    Disposition,
    NetworkActivityId,
    Severity,
    Status,
)
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from collections.abc import Container

    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.record import ForeignVerdict, Record, Verdict

#: The rules of a fence, as they stand in a record's prefix. ``link`` is the last hook before the
#: wire, ``guard`` the host's end of the sandbox's link; the others are round a VM, on its host.
EGRESS: Final = "egress"
FORWARD: Final = "forward"
INGRESS: Final = "ingress"
LINK: Final = "link"
GUARD: Final = "guard"
VM_FORWARD: Final = "vm-forward"
VM_INPUT: Final = "vm-input"
VM_INGRESS: Final = "vm-ingress"
VM_LINK: Final = "vm-link"

#: The rules whose packets go one way.
_WAYS: Final = {
    EGRESS: Direction.OUTBOUND,
    LINK: Direction.OUTBOUND,
    GUARD: Direction.OUTBOUND,
    INGRESS: Direction.INBOUND,
    VM_FORWARD: Direction.OUTBOUND,
    VM_INPUT: Direction.OUTBOUND,
    VM_LINK: Direction.OUTBOUND,
    VM_INGRESS: Direction.INBOUND,
}
#: The rules that drop.
_SILENT: Final = frozenset({INGRESS, LINK, GUARD, *VM_RULES})

#: Details that a fragment's record has.
FRAGMENTED: Final = frozenset({"fragment_offset", "more_fragments"})

_RST: Final = 0x04
_SYN: Final = 0x02
_ACK: Final = 0x10
#: DNS, DNS over TLS, NetBIOS names, multicast DNS, LLMNR.
NAME_PORTS: Final = frozenset({53, 137, 853, 5353, 5355})
#: Router solicitation and multicast listener messages (RFC 4861, RFC 2710, RFC 3810).
_HOUSEKEEPING: Final = frozenset({130, 131, 132, 133, 143})
#: Neighbour solicitation (RFC 4861). A VM without IPv6 sends it as soon as it boots.
_SOLICITATION: Final = 135
#: Errors about another packet (RFC 1122; RFC 4443: every type below 128).
_ICMP_ERRORS: Final[dict[int | None, Container[int]]] = {
    protocols.ICMP: frozenset({3, 4, 5, 11, 12}),
    protocols.ICMPV6: range(128),
}
#: Communication administratively prohibited (RFC 1812, RFC 4443), as the fence answers.
_PROHIBITED: Final[dict[int | None, tuple[int, int]]] = {
    protocols.ICMP: (3, 13),
    protocols.ICMPV6: (1, 1),
}
_ARP_REPLY: Final = 2  # RFC 826
_ECHO_REQUESTS: Final = frozenset({(protocols.ICMP, 8), (protocols.ICMPV6, 128)})


class Answer(Enum):
    """What the sender got: the value is the event's ``status_code``."""

    RESET = "tcp-reset"
    PROHIBITED = "icmpx-admin-prohibited"
    NOTHING = "dropped"
    #: Nothing from the fence: it let the packet pass, being permissive.
    PERMITTED = "permissive"


class Outcome(NamedTuple):
    """What became of a packet, in the schema's words."""

    activity: NetworkActivityId
    status: Status
    action: Action
    disposition: Disposition


_BLOCKED: Final = Outcome(
    NetworkActivityId.REFUSE, Status.FAILURE, Action.DENIED, Disposition.BLOCKED
)
_DROPPED: Final = _BLOCKED._replace(disposition=Disposition.DROPPED)
_LET_PASS: Final = Outcome(
    NetworkActivityId.OPEN, Status.SUCCESS, Action.OBSERVED, Disposition.LOGGED
)
#: A foreign rule says in its prefix what it does, or nothing: then it was logged, and that is all.
_OUTCOMES: Final[dict[ForeignVerdict, Outcome]] = {
    "reject": _BLOCKED,
    "drop": _DROPPED,
    "accept": Outcome(NetworkActivityId.OPEN, Status.SUCCESS, Action.ALLOWED, Disposition.ALLOWED),
    "log": Outcome(NetworkActivityId.TRAFFIC, Status.UNKNOWN, Action.OBSERVED, Disposition.LOGGED),
}


def is_ours(record: Record) -> bool:
    """Whether a rule of a fence logged it."""
    return record.sandbox is not None and record.verdict in {None, "permit"}


def foreign_verdict(record: Record) -> ForeignVerdict | None:
    """What a foreign rule did with the packet; None for one of ours."""
    if record.verdict == "permit":
        return None
    return None if is_ours(record) else record.verdict or "log"


def is_attempt(record: Record) -> bool:
    """Whether the packet was refused, or would have been if its fence were not permissive."""
    return foreign_verdict(record) not in {"accept", "log"}


def outcome(record: Record, answered: Answer | None) -> Outcome:
    """What became of the packet; ``answered`` is what the fence answered."""
    verdict = foreign_verdict(record)
    return outcome_of(answered) if verdict is None else _OUTCOMES[verdict]


def outcome_of(answered: Answer | None) -> Outcome:
    """What became of what a fence gave this answer to."""
    if answered is Answer.PERMITTED:
        return _LET_PASS
    return _DROPPED if answered is Answer.NOTHING else _BLOCKED


def direction(record: Record, uplinks: frozenset[str]) -> Direction:
    """Which way the packet went, seen from the sandbox; for a foreign rule, from the host."""
    if is_ours(record):
        if record.rule == FORWARD:
            if not uplinks or record.in_interface is None:
                return Direction.UNKNOWN
            inbound = record.in_interface in uplinks
            return Direction.INBOUND if inbound else Direction.OUTBOUND
        if record.rule in _WAYS:
            return _WAYS[record.rule]
    if record.in_interface is None and record.out_interface is not None:
        return Direction.OUTBOUND
    if record.in_interface is not None and record.out_interface is None:
        return Direction.INBOUND
    return Direction.UNKNOWN


def direction_of_rule(rule: str) -> Direction:
    """Which way all packets go that a rule of a fence refuses, seen from the sandbox."""
    return _WAYS.get(rule, Direction.UNKNOWN)


def answer_to_all(rule: str, way: Direction, verdict: Verdict | None) -> Answer | None:
    """What the kernel answered to every packet that a rule of a fence refused, or let pass.

    ``verdict`` is as in the rule's records. None where the answer depends on the packet.
    """
    if verdict == "permit":
        return Answer.PERMITTED
    is_silent = rule in _SILENT or way is Direction.INBOUND
    return Answer.NOTHING if is_silent else None


def answer(record: Record, way: Direction, destination: Place | None) -> Answer | None:
    """What the kernel answered; None for a rule that isn't ours, whose answer we don't know.

    A reject answers no reset with a reset and no ICMP error with another one, nor anything that
    went to many, is a late fragment or has no whole header (nf_reject_ipv4.c, nf_reject_ipv6.c and
    both icmp.c of the kernel).
    """
    if not is_ours(record):
        return None
    to_all = answer_to_all(record.rule, way, record.verdict)
    if to_all is not None:
        return to_all
    if record.rule not in {EGRESS, FORWARD} or way is Direction.UNKNOWN:
        return None
    if destination is None or destination.is_multicast or destination.is_broadcast:
        return Answer.NOTHING
    if record.details.get("fragment_offset") or "incomplete_bytes" in record.details:
        return Answer.NOTHING
    if record.protocol == protocols.TCP:
        is_reset = record.tcp_flags is not None and record.tcp_flags & _RST
        return Answer.NOTHING if is_reset else Answer.RESET
    is_error = record.details.get("icmp_type") in _ICMP_ERRORS.get(record.protocol, ())
    return Answer.NOTHING if is_error else Answer.PROHIBITED


def is_name_resolution(record: Record, way: Direction) -> bool:
    """Whether it is a question for a name (or, refused on its way in, an answer)."""
    if record.protocol not in {protocols.TCP, protocols.UDP}:
        return False
    is_answer = way is not Direction.OUTBOUND and record.source_port in NAME_PORTS
    return is_answer or record.destination_port in NAME_PORTS


def is_housekeeping(record: Record, destination: Place | None) -> bool:
    """Whether a kernel sends such packets by itself: to its link, or as an answer.

    An answer is an ARP reply to whoever asks for the sandbox's address, or the fence's own refusal
    on its way to a source address that was forged. No socket stands behind either. Of a VM's ARP
    only what is false is refused.
    """
    if record.uid is not None:
        return False
    if _is_answer(record):
        return True
    if destination is None or not (destination.is_multicast or destination.is_link_local):
        return False
    if record.protocol == protocols.IGMP:
        return True
    kind = record.details.get("icmp_type") if record.protocol == protocols.ICMPV6 else None
    return kind in _HOUSEKEEPING or (kind == _SOLICITATION and record.rule == VM_LINK)


def _is_answer(record: Record) -> bool:
    arp = record.details.get("arp")
    if isinstance(arp, Mapping):
        return record.rule != VM_LINK and arp.get("operation") == _ARP_REPLY
    answered = record.details.get("icmp_type"), record.details.get("icmp_code")
    return _PROHIBITED.get(record.protocol) == answered


def severity(record: Record, way: Direction, destination: Place | None) -> Severity:
    """How much it matters; what a permissive fence let pass, as if it had been refused."""
    if not is_attempt(record):
        return Severity.INFORMATIONAL
    if way is Direction.OUTBOUND and destination is not None and destination.is_cloud_metadata:
        return Severity.HIGH
    if is_housekeeping(record, destination):
        return Severity.INFORMATIONAL
    if is_name_resolution(record, way) or record.sandbox is None:
        return Severity.LOW
    return Severity.MEDIUM


def is_initiator_known(record: Record) -> bool:
    """Whether the packet itself proves that its sender began the conversation."""
    if record.protocol == protocols.TCP and record.tcp_flags is not None:
        return record.tcp_flags & (_SYN | _ACK | _RST) == _SYN
    return is_echo_request(record)


def is_echo_request(record: Record) -> bool:
    """Whether it is what ping sends."""
    return (record.protocol, record.details.get("icmp_type")) in _ECHO_REQUESTS
