"""What one record means: which way it went, what the kernel answered, how much it matters."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import protocols
from ocsf_nft.ocsf.enums import Direction, Severity

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.record import Record

#: The rules of a fence, as they stand in a record's prefix. ``link`` is the last hook before the
#: wire, ``guard`` the host's end of the sandbox's link.
EGRESS: Final = "egress"
FORWARD: Final = "forward"
INGRESS: Final = "ingress"
LINK: Final = "link"
GUARD: Final = "guard"

_RST: Final = 0x04
_SYN: Final = 0x02
_ACK: Final = 0x10
_DNS: Final = 53
#: DNS, DNS over TLS, NetBIOS names, multicast DNS, LLMNR.
_NAME_PORTS: Final = frozenset({_DNS, 137, 853, 5353, 5355})
#: Router solicitation and multicast listener messages (RFC 4861, RFC 2710, RFC 3810).
_HOUSEKEEPING: Final = frozenset({130, 131, 132, 133, 143})
_ECHO_REQUESTS: Final = frozenset({(protocols.ICMP, 8), (protocols.ICMPV6, 128)})


class Answer(Enum):
    """What the sender got: the value is the event's ``status_code``."""

    RESET = "tcp-reset"
    PROHIBITED = "icmpx-admin-prohibited"
    NOTHING = "dropped"


def direction(record: Record, links: frozenset[str]) -> Direction:
    """Which way the packet went, seen from the sandbox; for a foreign rule, from the host."""
    if record.sandbox is not None:
        if record.rule == INGRESS or (record.rule == FORWARD and record.in_interface in links):
            return Direction.INBOUND
        if record.rule in {EGRESS, FORWARD, LINK, GUARD}:
            return Direction.OUTBOUND
    if record.in_interface is None and record.out_interface is not None:
        return Direction.OUTBOUND
    if record.in_interface is not None and record.out_interface is None:
        return Direction.INBOUND
    return Direction.UNKNOWN


def answer(record: Record, way: Direction, destination: Place | None) -> Answer | None:
    """What the kernel answered; None for a rule that isn't ours, whose answer we don't know.

    A reject answers no reset with a reset, and nothing that went to many or is a late fragment
    (nf_reject_ipv4.c, nf_reject_ipv6.c, icmp.c of the kernel).
    """
    if record.sandbox is None:
        return None
    if record.rule in {INGRESS, LINK, GUARD} or way is Direction.INBOUND:
        return Answer.NOTHING
    if record.rule not in {EGRESS, FORWARD}:
        return None
    late_fragment = record.details.get("fragment_offset")
    if late_fragment or destination is None or destination.is_multicast or destination.is_broadcast:
        return Answer.NOTHING
    if record.protocol != protocols.TCP:
        return Answer.PROHIBITED
    if record.tcp_flags is not None and record.tcp_flags & _RST:
        return Answer.NOTHING
    return Answer.RESET


def is_name_resolution(record: Record, way: Direction) -> bool:
    """Whether it is a question for a name (or, refused on its way in, an answer)."""
    port = record.source_port if way is Direction.INBOUND else record.destination_port
    return record.protocol in {protocols.TCP, protocols.UDP} and port in _NAME_PORTS


def is_dns(record: Record) -> bool:
    """Whether it is a question for the DNS, which a proxy can spare the program."""
    return record.destination_port == _DNS


def is_housekeeping(record: Record, destination: Place | None) -> bool:
    """Whether a kernel sends such packets by itself, and no further than the link."""
    if destination is None or not (destination.is_multicast or destination.is_link_local):
        return False
    return record.protocol == protocols.IGMP or (
        record.protocol == protocols.ICMPV6 and record.details.get("icmp_type") in _HOUSEKEEPING
    )


def severity(record: Record, way: Direction, destination: Place | None) -> Severity:
    """How much it matters."""
    if way is Direction.OUTBOUND and destination is not None and destination.is_cloud_metadata:
        return Severity.HIGH
    if is_housekeeping(record, destination):
        return Severity.INFORMATIONAL
    if is_name_resolution(record, way):
        return Severity.LOW
    return Severity.MEDIUM


def is_initiator_known(record: Record) -> bool:
    """Whether the packet itself proves that its sender began the conversation."""
    if record.protocol == protocols.TCP and record.tcp_flags is not None:
        return record.tcp_flags & (_SYN | _ACK | _RST) == _SYN
    return (record.protocol, record.details.get("icmp_type")) in _ECHO_REQUESTS
