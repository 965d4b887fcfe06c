"""Meaning of log records: direction, answer to the sender, outcome and severity of a packet.

The answer is what a fence sends back, for example a TCP reset. The outcome consists of OCSF ids.
"""

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
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from collections.abc import Container

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.record import ForeignVerdict, Record, Verdict

#: Rules of a fence, as named in a record's prefix. ``link`` is the last hook before the wire.
#: ``guard`` and ``guard-ingress`` are at the host's end of the sandbox's link. The rules ``vm-*``
#: are on a VM's host.
EGRESS: Final = "egress"
FORWARD: Final = "forward"
INGRESS: Final = "ingress"
LINK: Final = "link"
GUARD: Final = "guard"
GUARD_INGRESS: Final = "guard-ingress"
VM_FORWARD: Final = "vm-forward"
VM_INPUT: Final = "vm-input"
VM_INGRESS: Final = "vm-ingress"
VM_LINK: Final = "vm-link"

#: Rules with packets of one direction only.
_DIRECTIONS: Final = {
    **dict.fromkeys((EGRESS, LINK, GUARD, VM_FORWARD, VM_INPUT, VM_LINK), Direction.OUTBOUND),
    **dict.fromkeys((INGRESS, GUARD_INGRESS, VM_INGRESS), Direction.INBOUND),
}
#: Rules that drop packets without an answer.
_SILENT: Final = frozenset({INGRESS, LINK, GUARD, GUARD_INGRESS, *VM_RULES})

#: Details that only records of fragments have.
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
#: Type and code of the fence's answer: communication administratively prohibited (RFC 1812, RFC
#: 4443).
_PROHIBITED: Final[dict[int | None, tuple[int, int]]] = {
    protocols.ICMP: (3, 13),
    protocols.ICMPV6: (1, 1),
}
_ARP_REPLY: Final = 2  # RFC 826
_ECHO_REQUESTS: Final = frozenset({(protocols.ICMP, 8), (protocols.ICMPV6, 128)})


class Answer(Enum):
    """Answer of a fence to the sender of a packet, for example a TCP reset, or no answer.

    The value of a member is the ``status_code`` of the event, for example ``tcp-reset``.
    """

    RESET = "tcp-reset"
    PROHIBITED = "icmpx-admin-prohibited"
    NOTHING = "dropped"
    #: No answer, because a permissive fence allowed the packet.
    PERMITTED = "permissive"


class Outcome(NamedTuple):
    """Outcome of a packet as OCSF ids, such as Refuse, Failure, Denied and Blocked."""

    activity: NetworkActivityId
    status: Status
    action: Action
    disposition: Disposition


_BLOCKED: Final = Outcome(
    NetworkActivityId.REFUSE, Status.FAILURE, Action.DENIED, Disposition.BLOCKED
)
_DROPPED: Final = _BLOCKED._replace(disposition=Disposition.DROPPED)
_ALLOWED: Final = Outcome(
    NetworkActivityId.OPEN, Status.SUCCESS, Action.OBSERVED, Disposition.LOGGED
)
#: Outcomes by the verdict of a foreign rule. Its prefix states the verdict; if not, it is "log".
_OUTCOMES: Final[dict[ForeignVerdict, Outcome]] = {
    "reject": _BLOCKED,
    "drop": _DROPPED,
    "accept": Outcome(NetworkActivityId.OPEN, Status.SUCCESS, Action.ALLOWED, Disposition.ALLOWED),
    "log": Outcome(NetworkActivityId.TRAFFIC, Status.UNKNOWN, Action.OBSERVED, Disposition.LOGGED),
}

#: Codes of situations by the verdict of a foreign rule.
_FOREIGN_CODES: Final[dict[ForeignVerdict, EventCode]] = {
    "reject": EventCode.FIREWALL_REJECTED,
    "drop": EventCode.FIREWALL_DROPPED,
    "accept": EventCode.FIREWALL_ALLOWED,
    "log": EventCode.FIREWALL_LOGGED,
}
#: Codes of situations by the rule of a fence: blocked, and allowed by a permissive fence.
_EGRESS_CODES: Final = EventCode.EGRESS_BLOCKED, EventCode.EGRESS_ALLOWED
_INGRESS_CODES: Final = EventCode.INGRESS_BLOCKED, EventCode.INGRESS_ALLOWED
_LINK_CODES: Final = EventCode.LINK_BLOCKED, EventCode.LINK_ALLOWED
_CODES: Final = {
    FORWARD: (EventCode.FORWARD_BLOCKED, EventCode.FORWARD_ALLOWED),
    INGRESS: _INGRESS_CODES,
    GUARD_INGRESS: _INGRESS_CODES,
    VM_INGRESS: _INGRESS_CODES,
    LINK: _LINK_CODES,
    VM_LINK: _LINK_CODES,
}


def is_ours(record: Record) -> bool:
    """Return True if an ocsf-nft fence logged the packet, False if another firewall did."""
    return record.sandbox is not None and record.verdict in {None, "permit"}


def foreign_verdict(record: Record) -> ForeignVerdict | None:
    """Return the verdict of another firewall on a packet, for example ``drop``.

    If the verdict is unknown, return ``log``. Return None if the record is of an ocsf-nft fence.
    """
    if record.verdict == "permit":
        return None
    return None if is_ours(record) else record.verdict or "log"


def is_attempt(record: Record) -> bool:
    """Return True if a firewall refused the packet, or if a permissive fence allowed it."""
    return foreign_verdict(record) not in {"accept", "log"}


def outcome(record: Record, answer: Answer | None) -> Outcome:
    """Return the outcome of a packet as OCSF ids, for example action Denied, disposition Blocked.

    ``answer`` is what the fence sends back; None if unknown. If another firewall logged the packet,
    the outcome depends only on that firewall's verdict.
    """
    verdict = foreign_verdict(record)
    return outcome_of(answer) if verdict is None else _OUTCOMES[verdict]


def outcome_of(answer: Answer | None) -> Outcome:
    """Return the outcome of a packet by the fence's answer: Blocked if it is unknown."""
    if answer is Answer.PERMITTED:
        return _ALLOWED
    return _DROPPED if answer is Answer.NOTHING else _BLOCKED


def direction(record: Record, uplinks: frozenset[str]) -> Direction:
    """Return the direction of a packet: inbound, outbound or unknown.

    Outbound means out of the sandbox or, for another firewall's record, out of the host.
    ``uplinks`` are the interfaces that lead out of the sandbox. The function uses them only for
    forwarded packets.
    """
    if is_ours(record):
        if record.rule == FORWARD:  # the sandbox is a router, for example for containers inside it
            if not uplinks or record.in_interface is None:
                return Direction.UNKNOWN
            inbound = record.in_interface in uplinks
            return Direction.INBOUND if inbound else Direction.OUTBOUND
        if record.rule in _DIRECTIONS:
            return _DIRECTIONS[record.rule]
    if record.in_interface is None and record.out_interface is not None:
        return Direction.OUTBOUND
    if record.in_interface is not None and record.out_interface is None:
        return Direction.INBOUND
    return Direction.UNKNOWN


def direction_of_rule(rule: str) -> Direction:
    """Return the direction of the packets that a fence's rule refuses; UNKNOWN if it has both."""
    return _DIRECTIONS.get(rule, Direction.UNKNOWN)


def answer_to_all(rule: str, direction: Direction, verdict: Verdict | None) -> Answer | None:
    """Return the answer of a fence's rule to senders, if all packets get the same answer.

    If the answer depends on the packet, return None: then call :func:`answer`. A ``verdict`` of
    ``permit`` means that the fence is permissive.
    """
    if verdict == "permit":  # the fence is permissive
        return Answer.PERMITTED
    is_silent = rule in _SILENT or direction is Direction.INBOUND
    return Answer.NOTHING if is_silent else None


def answer(record: Record, direction: Direction, destination: AddressKind | None) -> Answer | None:
    """Return the fence's answer to the sender of a packet, for example a TCP reset.

    Return ``NOTHING`` if the fence drops the packet without an answer. Return None if the answer is
    unknown, for example if another firewall logged the packet.
    """
    if not is_ours(record):
        return None
    to_all = answer_to_all(record.rule, direction, record.verdict)
    if to_all is not None:
        return to_all
    if record.rule not in {EGRESS, FORWARD} or direction is Direction.UNKNOWN:
        return None
    # The kernel replies to none of the packets below: nf_reject_ipv4.c, nf_reject_ipv6.c,
    # net/ipv4/icmp.c, net/ipv6/icmp.c.
    if destination is None or destination.is_multicast or destination.is_broadcast:
        return Answer.NOTHING
    # A fragment after the first, or an incomplete header.
    if record.details.get("fragment_offset") or "incomplete_bytes" in record.details:
        return Answer.NOTHING
    if record.protocol == protocols.TCP:
        is_reset = record.tcp_flags is not None and record.tcp_flags & _RST
        return Answer.NOTHING if is_reset else Answer.RESET
    is_error = record.details.get("icmp_type") in _ICMP_ERRORS.get(record.protocol, ())
    return Answer.NOTHING if is_error else Answer.PROHIBITED


def is_name_resolution(record: Record, direction: Direction) -> bool:
    """Return True if the ports of a TCP or UDP packet are those of name resolution."""
    if record.protocol not in {protocols.TCP, protocols.UDP}:
        return False
    is_answer = direction is not Direction.OUTBOUND and record.source_port in NAME_PORTS
    return is_answer or record.destination_port in NAME_PORTS


def is_housekeeping(record: Record, destination: AddressKind | None) -> bool:
    """Return True if the packet is of a kind that a kernel sends by itself, without a program.

    These are ARP replies, a fence's ICMP errors, and messages about the local link such as IGMP. A
    counter does not show the type of an ICMPv6 message: then its destination decides.
    """
    if record.uid is not None:
        return False
    if _is_answer(record):
        return True
    if destination is None or not (destination.is_multicast or destination.is_link_local):
        return False
    if record.protocol == protocols.IGMP:
        return True
    if record.protocol != protocols.ICMPV6:
        return False
    kind = record.details.get("icmp_type")
    if kind is None:
        return record.origin.transport == "counters"
    return kind in _HOUSEKEEPING or (kind == _SOLICITATION and record.rule == VM_LINK)


def _is_answer(record: Record) -> bool:
    arp = record.details.get("arp")
    if arp is None and record.ethertype == protocols.ETHERTYPE_ARP:
        # A counter does not show the kind of message. A program's frame has a user at this rule.
        return record.rule == LINK and record.origin.transport == "counters"
    if isinstance(arp, Mapping):
        # A VM's fence allows correct ARP replies: a refused one has a false address.
        return record.rule != VM_LINK and arp.get("operation") == _ARP_REPLY
    type_and_code = record.details.get("icmp_type"), record.details.get("icmp_code")
    return _PROHIBITED.get(record.protocol) == type_and_code


def is_metadata_access(
    record: Record, direction: Direction, destination: AddressKind | None
) -> bool:
    """Return True if a packet goes out of a sandbox to a cloud's metadata service.

    Some of these addresses also resolve names: 169.254.169.254 in Google Cloud, 168.63.129.16 in
    Azure. A DNS query there asks for no credentials.
    """
    return (
        direction is Direction.OUTBOUND
        and destination is not None
        and destination.is_cloud_metadata
        and not is_name_resolution(record, direction)
    )


def severity(record: Record, direction: Direction, destination: AddressKind | None) -> Severity:
    """Return the default severity of a packet, for use if no configured severity rule matches.

    For example, a refused packet to a cloud metadata address has severity High. ``destination`` is
    None if the packet has no destination address.
    """
    if not is_attempt(record):  # a packet that a permissive fence allowed is an attempt too
        return Severity.INFORMATIONAL
    if is_metadata_access(record, direction, destination):
        return Severity.HIGH
    if is_housekeeping(record, destination):
        return Severity.INFORMATIONAL
    if is_name_resolution(record, direction) or record.sandbox is None:
        return Severity.LOW
    return Severity.MEDIUM


def code(attempt: Attempt, direction: Direction, destination: AddressKind | None) -> EventCode:
    """Return the code of the situation that an attempt's Network Activity event reports.

    ``destination`` is None if the packet has no destination address.
    """
    record = attempt.record
    verdict = foreign_verdict(record)
    if verdict is not None:
        return _FOREIGN_CODES[verdict]
    if attempt.aggregation is not None:
        return EventCode.AGGREGATED
    if is_housekeeping(record, destination):
        return EventCode.KERNEL_TRAFFIC
    blocked, allowed = _CODES.get(record.rule, _EGRESS_CODES)
    if is_metadata_access(record, direction, destination):
        blocked, allowed = EventCode.CLOUD_METADATA_BLOCKED, EventCode.CLOUD_METADATA_ALLOWED
    elif direction is Direction.OUTBOUND and is_name_resolution(record, direction):
        blocked, allowed = EventCode.DNS_BLOCKED, EventCode.DNS_ALLOWED
    return allowed if record.verdict == "permit" else blocked


def is_initiator_known(record: Record) -> bool:
    """Return True if the packet proves that its sender began the connection or the ping.

    A TCP SYN with neither ACK nor RST proves this, and so does an ICMP echo request. Any other
    packet, for example UDP, may be a reply.
    """
    if record.protocol == protocols.TCP and record.tcp_flags is not None:
        return record.tcp_flags & (_SYN | _ACK | _RST) == _SYN
    return is_echo_request(record)


def is_echo_request(record: Record) -> bool:
    """Return True if the packet is an ICMP or ICMPv6 echo request, also called ping."""
    return (record.protocol, record.details.get("icmp_type")) in _ECHO_REQUESTS
