"""Parser of the packet log lines of nf_log_syslog.c, in the forms of all kernel versions.

A field may be missing, because rules log with different flags. A line may be cut anywhere in
transit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.packet import AH, ESP, ICMP, ICMPV6, TCP, UDP, UDPLITE
from ocsf_nft.sources.packet_fields import canonical_address, link_facts, vlan_facts
from ocsf_nft.sources.text.field_splitter import UNPADDED, Words, put
from ocsf_nft.sources.text.transport import take_transport

if TYPE_CHECKING:
    from ocsf_nft.sources.packet_fields import Facts

_DEVICE: Final = r"[^\s/:]{1,64}+"  # dev_valid_name in net/core/dev.c
_HEAD: Final = re.compile(
    rf"IN=(?P<in_interface>(?:{_DEVICE})?+) +OUT=(?P<out_interface>(?:{_DEVICE})?+)"
    rf"(?: +PHYSIN=(?P<physical_in_interface>{_DEVICE}))?+"
    rf"(?: +PHYSOUT=(?P<physical_out_interface>{_DEVICE}))?+ ",
    re.ASCII,
)
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_HEADER: Final = re.compile(r"(?:[0-9a-f]{2}(?::[0-9a-f]{2})*)?", re.ASCII)
_PROTOCOLS: Final = {
    "TCP": TCP, "UDP": UDP, "UDPLITE": UDPLITE,
    "ICMP": ICMP, "ICMPv6": ICMPV6, "ESP": ESP, "AH": AH,
}  # fmt: skip
#: GSO_MAX_SIZE in include/linux/netdevice.h: maximum of ``iph_totlen`` for a big TCP packet.
_LENGTH_LIMIT: Final = 524_280
_IP_ETHERTYPES: Final = frozenset({0x0800, 0x86DD, 0x0806, 0x8035})


def read(line: str) -> Facts:
    """Parse the log line of a packet; return the facts: the values in the line, by name.

    ``line`` begins with ``IN=``. Raises MalformedError if the line can't be parsed.
    """
    head = _HEAD.match(line)
    if head is None:
        raise MalformedError("the devices after IN= and OUT= can't be read, or the line ends there")
    # A value that may be cut off is only in ``unparsed``. But many tools strip the last space: so a
    # value that is certainly complete, such as ``0``, is used even if no space follows it.
    words = Words(line[head.end() :])
    facts: Facts = {name: device for name, device in head.groupdict().items() if device}
    _link(words, facts)
    if words.flag("ARP"):
        _arp(words, facts)
    elif words.flag("TRUNCATED", certain=True):
        facts["incomplete"] = True
    elif words.peek().startswith("SRC="):
        _ip(words, facts, quoted=False)
    elif "ethertype" not in facts and "link_header" not in facts:
        words.finish()
        raise MalformedError("the line ends before the packet")
    elif facts.get("ethertype") in _IP_ETHERTYPES:
        words.expect_more()
    words.finish()
    if words.unparsed:
        facts["unparsed"] = " ".join(words.unparsed)
    if words.truncated:
        facts["truncated"] = True
    return facts


def _link(words: Words, facts: Facts) -> None:
    header = words.value("MAC")
    if header is not None:
        if _HEADER.fullmatch(header) is None:
            raise MalformedError("MAC is not a link header")
        facts.update(link_facts(bytes.fromhex(header.replace(":", ""))))
        _tunnel(words, facts)
        return
    put(facts, "mac_source", _mac(words, "MACSRC"))
    put(facts, "mac_destination", _mac(words, "MACDST"))
    protocol, tag = words.hexadecimal("VPROTO", "([0-9a-f]{4})"), words.number("VID", 0xFFFF)
    if protocol is not None and tag is not None:
        facts.update(vlan_facts(protocol, tag))
    put(facts, "ethertype", words.hexadecimal("MACPROTO", "([0-9a-f]{4})"))


def _tunnel(words: Words, facts: Facts) -> None:
    tunnel = words.value("TUNNEL")
    if tunnel is None:
        return
    source, arrow, destination = tunnel.partition("->")
    if not arrow:
        raise MalformedError("TUNNEL is not two addresses")
    facts["tunnel_source"] = _canonical("TUNNEL", source)
    facts["tunnel_destination"] = _canonical("TUNNEL", destination)


def _mac(words: Words, key: str) -> str | None:
    value = words.value(key)
    if value is not None and _MAC.fullmatch(value) is None:
        raise MalformedError(f"{key} is not a hardware address")
    return value


def _canonical(key: str, text: str) -> str:
    address = canonical_address(text)
    if address is None:
        raise MalformedError(f"{key} is not an IP address")
    return address


def _address(words: Words, key: str) -> str:
    value = words.value(key)
    if value is None:
        if words.ended():
            raise MalformedError(f"the line ends before or inside {key}")
        raise MalformedError(f"{key} is missing")
    return _canonical(key, value)


def _arp(words: Words, facts: Facts) -> None:
    arp: Facts = {}
    facts["arp"] = arp
    if not (
        words.expect(arp, "hardware_type", words.number("HTYPE", 0xFFFF))
        and words.expect(arp, "protocol_type", words.hexadecimal("PTYPE", "0x([0-9a-f]{4})"))
        and words.expect(
            arp, "operation", words.number("OPCODE", 0xFFFF, certain=_last_number(words))
        )
    ):
        return
    if words.incomplete(arp) or not put(arp, "mac_source", _mac(words, "MACSRC")):
        return
    source = words.value("IPSRC")
    if source is not None:
        arp["source"] = _canonical("IPSRC", source)
    put(arp, "mac_destination", _mac(words, "MACDST"))
    # The kernel prints no space after the last value, so a cut inside this value can't be detected.
    last = words.peek().removeprefix("IPDST=")
    destination = words.value("IPDST", certain=last if canonical_address(last) else None)
    if destination is None:
        words.expect_more()
    else:
        arp["destination"] = _canonical("IPDST", destination)


def _last_number(words: Words) -> int | None:
    digits = words.peek().removeprefix("OPCODE=")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else None


def _ip(words: Words, facts: Facts, *, quoted: bool) -> None:
    source = _address(words, "SRC")
    destination = _address(words, "DST")
    if (":" in source) is not (":" in destination):
        raise MalformedError("SRC and DST are of two IP versions")
    facts["source"] = source
    facts["destination"] = destination
    if ":" in source:
        facts["ip_version"] = 6
        chain = _ipv6(words, facts)
        whole, later_fragment = not chain.ended, chain.later_fragment
    else:
        facts["ip_version"] = 4
        whole = _ipv4(words, facts)
        later_fragment = "fragment_offset" in facts
    if whole:
        _protocol(words, facts, later_fragment=later_fragment, quoted=quoted)
    if not quoted:
        _owner(words, facts)


def _ipv4(words: Words, facts: Facts) -> bool:
    """Parse the IPv4 header into ``facts``; return False if the packet ends inside the header."""
    put(facts, "length", words.number("LEN", _LENGTH_LIMIT))
    tos = words.hexadecimal("TOS", "0x([01][02468ACE])")
    precedence = words.hexadecimal("PREC", "0x([02468ACE]0)")
    if tos is not None and precedence is not None:
        facts["tos"] = tos | precedence
    put(facts, "ttl", words.number("TTL", 0xFF))
    put(facts, "ip_id", words.number("ID", 0xFFFF))
    for flag, name in (("CE", "congestion"), ("DF", "dont_fragment"), ("MF", "more_fragments")):
        if words.flag(flag):
            facts[name] = True
    offset = words.number("FRAG", 0x1FFF, ":")
    if offset is not None:
        facts["fragment_offset"] = offset * 8
    if words.flag("TRUNCATED", certain=True):
        facts["incomplete"] = True
        return False
    put(facts, "ip_options", words.options()[0])
    return True


def _ipv6(words: Words, facts: Facts) -> _Chain:
    put(facts, "length", words.number("LEN", 0xFFFF + 40))
    put(facts, "traffic_class", words.number("TC", 0xFF))
    put(facts, "hop_limit", words.number("HOPLIMIT", 0xFF))
    put(facts, "flow_label", words.number("FLOWLBL", 0xFFFFF))
    chain = _Chain()
    while not chain.ended:
        if words.flag("OPT (", certain=True):
            chain.headers += 1
            _extension(words, facts, chain)
        elif words.peek().startswith("FRAG:"):
            _fragment(words, facts, chain)
        else:
            break
    # A cut line may have had more of them.
    if chain.headers and not words.truncated and (chain.ended or not words.ended()):
        facts["extension_headers"] = chain.headers
    if words.flag("TRUNCATED", certain=True):
        facts["incomplete"] = True
        chain.ended = True
    return chain


@dataclass(slots=True)
class _Chain:
    """State of the parser for the IPv6 extension headers of one packet."""

    #: Number of parsed headers; also 0 if it is unknown, because the line is cut inside a header.
    headers: int = 0
    #: True for a fragment that is not the first one.
    later_fragment: bool = False
    #: True if neither another header nor a ``PROTO=`` field can follow.
    ended: bool = False


def _extension(words: Words, facts: Facts, chain: _Chain) -> None:
    later_fragment = chain.later_fragment
    if words.peek().startswith("FRAG:"):
        _fragment(words, facts, chain)
        later_fragment = False
    elif words.flag("ESP"):
        facts["protocol"] = ESP
        _security(words, facts, chain)
        chain.ended = True
    elif words.flag("AH"):
        _security(words, facts, chain)
    if words.flag(")", certain=True):
        # After the header of a later fragment the kernel opens one more header and stops.
        chain.ended = chain.ended or later_fragment
    elif not chain.ended:
        # The line is cut, or the next word is at a wrong position: their number is unknown.
        words.expect_more()
        chain.headers = 0
        chain.ended = True


def _security(words: Words, facts: Facts, chain: _Chain) -> None:
    index = words.hexadecimal("SPI", UNPADDED)
    if index is not None:
        facts.setdefault("spi", index)
    if words.incomplete(facts):
        chain.ended = True


def _fragment(words: Words, facts: Facts, chain: _Chain) -> None:
    if words.peek() == "FRAG:TRUNCATED":
        words.value("FRAG", ":", certain="TRUNCATED")
        facts["incomplete"] = True
        chain.ended = True
        return
    offset = words.number("FRAG", 0xFFF8, ":")
    if offset is not None and offset % 8:
        raise MalformedError("FRAG is not a multiple of 8")
    more = words.flag("INCOMPLETE")
    ident = words.hexadecimal("ID", "([0-9a-f]{8})", ":")
    if offset is None or ident is None:
        return  # if the line is cut here, the missing bracket or protocol shows it
    chain.later_fragment = chain.later_fragment or offset > 0
    if "fragment_offset" not in facts:
        facts["fragment_offset"] = offset
        facts["ip_id"] = ident
        if more:
            facts["more_fragments"] = True


def _protocol(words: Words, facts: Facts, *, later_fragment: bool, quoted: bool) -> None:
    value = words.value("PROTO")
    if value is None:
        words.expect_more()
        return
    named = value in _PROTOCOLS
    if named:
        protocol = _PROTOCOLS[value]
    elif re.fullmatch("0|[1-9][0-9]{0,2}", value, re.ASCII) and int(value) <= 0xFF:
        protocol = int(value)
    else:
        raise MalformedError("PROTO is not a protocol")
    facts["protocol"] = protocol
    # The kernel decodes only protocols that it names, and not ICMP of the other IP version.
    if named and not later_fragment:
        take_transport(words, facts, protocol, None if quoted else _quote)


def _quote(words: Words, facts: Facts) -> None:
    if not words.flag("[", certain=True):
        words.expect_more()
        return
    quoted: Facts = {}
    facts["quoted"] = quoted
    if words.flag("TRUNCATED", certain=True):
        quoted["incomplete"] = True
    elif words.peek().startswith("SRC=") and not words.ended():
        try:
            _ip(words, quoted, quoted=True)
        except MalformedError:
            if not words.ended():
                raise
    if not words.flag("]", certain=True):
        words.expect_more()


def _owner(words: Words, facts: Facts) -> None:
    has_uid = put(facts, "uid", words.number("UID", 0xFFFFFFFF))
    if not put(facts, "gid", words.number("GID", 0xFFFFFFFF)) and has_uid:
        words.expect_more()
    put(facts, "mark", words.hexadecimal("MARK", UNPADDED))
