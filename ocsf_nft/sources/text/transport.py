"""Parser of the transport header in a kernel log line: the fields after ``PROTO=``.

A line may be cut before it reaches this program. A line that ends too early is marked as truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.sources import packet
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.packet_fields import canonical_address
from ocsf_nft.sources.text.field_splitter import UNPADDED, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.sources.packet_fields import Facts
    from ocsf_nft.sources.text.field_splitter import Words

#: Bit of each flag, by the kernel's name, in the kernel's order.
TCP_FLAGS: Final = {
    name: 256 >> bit
    for bit, name in enumerate(("AE", "CWR", "ECE", "URG", "ACK", "PSH", "RST", "SYN", "FIN"))
}
#: ``RES=`` has the four bits before CWR, shifted left by two. The lowest one became AE (RFC 9768):
#: newer kernels print it as a flag, older kernels in ``RES=``.
RESERVED_FORM: Final = "0x([0-3][048c])"
RESERVED_AE: Final = 0x04
RESERVED_SHIFT: Final = 3


def take_transport(
    words: Words, facts: Facts, protocol: int, quote: Callable[[Words, Facts], None] | None
) -> None:
    """Parse a log line's transport header, for example TCP, and store its values in ``facts``.

    ``quote`` parses the packet that an ICMP error quotes. ``quote`` is None if the header is part
    of such a quoted packet. Raises MalformedError if a field is invalid.
    """
    if protocol == packet.TCP:
        _tcp(words, facts)
    elif protocol in {packet.UDP, packet.UDPLITE}:
        _udp(words, facts)
    elif protocol == packet.ICMP:
        _icmp(words, facts, quote)
    elif protocol == packet.ICMPV6:
        _icmpv6(words, facts, quote)
    elif facts["ip_version"] == 4 and not words.incomplete(facts):  # AH, ESP
        words.expect(facts, "spi", words.hexadecimal("SPI", UNPADDED))


def _tcp(words: Words, facts: Facts) -> None:
    if words.incomplete(facts):
        return
    words.expect(facts, "source_port", words.number("SPT", 0xFFFF))
    words.expect(facts, "destination_port", words.number("DPT", 0xFFFF))
    put(facts, "tcp_sequence", words.number("SEQ", 0xFFFFFFFF))
    put(facts, "tcp_acknowledgment", words.number("ACK", 0xFFFFFFFF))
    words.expect(facts, "tcp_window", words.number("WINDOW", 0xFFFF))
    reserved = words.hexadecimal("RES", RESERVED_FORM)
    flags = sum(bit for name, bit in TCP_FLAGS.items() if words.flag(name))
    if reserved is not None:
        facts["tcp_reserved"] = reserved >> RESERVED_SHIFT
        # Without the next field, the line may have been cut before more flags.
        if words.peek().startswith("URGP="):
            facts["tcp_flags"] = flags | (256 if reserved & RESERVED_AE else 0)
    words.expect(facts, "tcp_urgent_pointer", words.number("URGP", 0xFFFF))
    options, incomplete = words.options()
    put(facts, "tcp_options", options)
    if incomplete:
        facts["incomplete"] = True


def _udp(words: Words, facts: Facts) -> None:
    if words.incomplete(facts):
        return
    words.expect(facts, "source_port", words.number("SPT", 0xFFFF))
    words.expect(facts, "destination_port", words.number("DPT", 0xFFFF))
    # At the end of a line, a length that equals the payload's size has no digits cut off.
    words.expect(facts, "udp_length", words.number("LEN", 0xFFFF, certain=_payload(facts)))


def _payload(facts: Facts) -> int | None:
    """Return an IP packet's payload size in bytes; None if unknown.

    IPv6 extension headers count as payload.
    """
    length, options = facts.get("length"), facts.get("ip_options", "")
    if not isinstance(length, int) or not isinstance(options, str):
        return None
    return length - (20 + len(options) // 2 if facts["ip_version"] == 4 else 40)


def _icmp(words: Words, facts: Facts, quote: Callable[[Words, Facts], None] | None) -> None:
    if words.incomplete(facts) or not _kind(words, facts) or words.incomplete(facts):
        return
    kind = facts["icmp_type"]
    if kind in packet.ICMP_ECHO:
        _echo(words, facts)
    elif kind == packet.ICMP_PARAMETER_PROBLEM:
        words.expect(facts, "icmp_parameter", words.number("PARAMETER", 0xFF))
    elif kind in packet.ICMP_QUOTES:
        if kind == packet.ICMP_REDIRECT:
            _gateway(words, facts)
        if quote is not None:
            quote(words, facts)
        if (kind, facts["icmp_code"]) == (3, 4):
            words.expect(facts, "icmp_mtu", words.number("MTU", 0xFFFF))


def _icmpv6(words: Words, facts: Facts, quote: Callable[[Words, Facts], None] | None) -> None:
    if words.incomplete(facts) or not _kind(words, facts):
        return
    kind = facts["icmp_type"]
    if kind in packet.ICMPV6_ECHO:
        _echo(words, facts)
    elif kind in packet.ICMPV6_QUOTES:
        if kind == packet.ICMPV6_PARAMETER_PROBLEM:
            put(facts, "icmp_pointer", words.hexadecimal("POINTER", "([0-9a-f]{8})"))
        if quote is not None:
            quote(words, facts)
        if kind == packet.ICMPV6_TOO_BIG:
            words.expect(facts, "icmp_mtu", words.number("MTU", 0xFFFFFFFF))


def _kind(words: Words, facts: Facts) -> bool:
    return words.expect(facts, "icmp_type", words.number("TYPE", 0xFF)) and words.expect(
        facts, "icmp_code", words.number("CODE", 0xFF)
    )


def _echo(words: Words, facts: Facts) -> None:
    words.expect(facts, "icmp_id", words.number("ID", 0xFFFF))
    words.expect(facts, "icmp_sequence", words.number("SEQ", 0xFFFF))


def _gateway(words: Words, facts: Facts) -> None:
    gateway = words.value("GATEWAY")
    if gateway is None:
        return  # if the line is cut here, the missing quote shows it
    address = canonical_address(gateway)
    if address is None or ":" in address:
        raise MalformedError("GATEWAY is not an IPv4 address")
    facts["icmp_gateway"] = address
