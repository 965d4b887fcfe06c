"""Parser that converts a kernel log line about a packet to a Record.

The parser expects the fields in the order in which the kernel writes them. A line that can be read
in more than one way is rejected.
"""

# The order of the fields: net/netfilter/nf_log_syslog.c in the kernel's source.

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.record import PREFIX_ROOT, Reject
from ocsf_nft.sources import packet_fields as fact
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.packet import TCP, UDP
from ocsf_nft.sources.packet_fields import canonical_address
from ocsf_nft.sources.text.transport import RESERVED_AE, RESERVED_FORM, RESERVED_SHIFT, TCP_FLAGS

if TYPE_CHECKING:
    from ocsf_nft.record import Origin, Record
    from ocsf_nft.sources.packet_fields import Facts

#: Our own prefixes; the pattern is so strict that the end of a prefix is unambiguous.
_OURS: Final = re.compile(
    r"ocsf-nft:[A-Za-z0-9._-]{1,64}:[A-Za-z0-9._-]{1,64}:(?:permissive:)?+(?=IN=)"
)
#: A prefix has at most 127 bytes (NF_LOG_PREFIXLEN in include/uapi/linux/netfilter/nf_log.h).
_PREFIX_LIMIT: Final = 127
#: Start of a netfilter record: two devices, separated by a space.
_DEVICES: Final = re.compile(r"IN=[^ ]* OUT=")
#: The same, from the last ``IN=`` before ``OUT=``: so a search reads no character twice.
_DEVICES_ANYWHERE: Final = re.compile(r"IN=(?:(?!IN=)[^ ])*+ OUT=")

_NUMBER: Final = "(0|[1-9][0-9]{0,9})"
_MAC: Final = "[0-9a-f]{2}(?::[0-9a-f]{2}){5}"
_ADDRESS: Final = "([0-9.]{7,15}+|[0-9a-f:]{2,39}+)"
#: A search for names would fail: a prefix, a device's name or a packet quoted in an ICMP error may
#: contain the same names.
#: The usual line: TCP and UDP as the kernel prints them. ``grammar``, which is slower, parses all
#: other lines. Both give the same Record for the same line.
#: ``[0-9]``, because ``\d`` accepts digits of any script.
_COMMON: Final = re.compile(
    r"IN=([^\s/:]{0,64}+) OUT=([^\s/:]{0,64}+) "
    rf"(?:MAC=([0-9a-f]{{2}}(?::[0-9a-f]{{2}}){{13}}) "
    rf"|MACSRC=({_MAC}) MACDST=({_MAC}) MACPROTO=([0-9a-f]{{4}}) )?+"
    rf"SRC={_ADDRESS} DST={_ADDRESS} LEN={_NUMBER} "
    rf"(?:TOS=0x([01][02468ACE]) PREC=0x([02468ACE]0) TTL={_NUMBER} ID={_NUMBER} (DF )?+"
    rf"|TC={_NUMBER} HOPLIMIT={_NUMBER} FLOWLBL={_NUMBER} )"
    rf"PROTO=(?:TCP SPT={_NUMBER} DPT={_NUMBER} (?:SEQ={_NUMBER} ACK={_NUMBER} )?+"
    rf"WINDOW={_NUMBER} RES={RESERVED_FORM} ("
    + "".join(f"(?:{name} )?+" for name in TCP_FLAGS)
    + rf")URGP={_NUMBER} (?:OPT \(((?:[0-9A-F]{{2}}){{1,40}}+)\) )?+"
    rf"|UDP SPT={_NUMBER} DPT={_NUMBER} LEN={_NUMBER} )"
    rf"(?:UID={_NUMBER} GID={_NUMBER} )?+(?:MARK=0x([1-9a-f][0-9a-f]{{0,7}}) )?+",
    re.ASCII,
)


class _AmbiguousError(Exception):
    """Error: it is unclear at which position of a log line the packet begins."""


def is_candidate(message: str) -> bool:
    """Return true if a message may be a packet's log record.

    Such a message contains ``IN=… OUT=``, or begins with ``ocsf-nft:``.
    """
    return message.startswith(PREFIX_ROOT) or _DEVICES_ANYWHERE.search(message) is not None


def possible_prefixes(message: str) -> list[str]:
    """Return each possible log prefix of a message: the text before each ``IN=… OUT=``."""
    return [message[:start] for start in _starts(message)]


def read(message: str, *, origin: Origin, time_ns: int, received_ns: int) -> Record | Reject | None:
    """Parse one kernel log message, without timestamp and level, to a Record.

    Returns None if the message is not about a packet, a Reject if parsing fails; never raises.
    ``time_ns`` is the packet's time, and ``received_ns`` the time of reading, both since the epoch.
    """
    if not is_candidate(message):
        return None
    ours = message.startswith(PREFIX_ROOT)
    message = message.rstrip("\r\n")
    try:
        prefix, facts = _parse_ours(message) if ours else _parse_foreign(message)
    except MalformedError as error:
        return Reject(kind="malformed", reason=str(error), line=message)
    except _AmbiguousError as error:
        return Reject(kind="ambiguous", reason=str(error), line=message)
    return fact.record(prefix, facts, time_ns=time_ns, received_ns=received_ns, origin=origin)


def _parse_ours(message: str) -> tuple[str, Facts]:
    match = _OURS.match(message)
    if match is None:
        raise MalformedError(
            "it begins like our prefix and is not ocsf-nft:<sandbox>:<rule>: or "
            "ocsf-nft:<sandbox>:<rule>:permissive: followed by IN="
        )
    return match.group(), _packet(message, match.end())


def _parse_foreign(message: str) -> tuple[str, Facts]:
    """Split a message of another firewall into its log prefix and its packet values by name.

    Raises MalformedError if the packet can't be parsed, _AmbiguousError if it is unclear where the
    packet begins.
    """
    starts = _starts(message)
    if len(starts) == 1:
        return message[: starts[0]], _packet(message, starts[0])
    # The prefix may contain ``IN=… OUT=`` too: exactly one must begin a complete packet.
    whole: list[tuple[int, Facts]] = []
    for start in starts:
        try:
            facts = _packet(message, start)
        except MalformedError:
            continue
        if "unparsed" not in facts and "truncated" not in facts:
            whole.append((start, facts))
    if len(whole) == 1:
        start, facts = whole[0]
        return message[:start], facts
    raise _AmbiguousError(
        f"IN= … OUT= occurs {len(starts)} times, {len(whole)} of them begin a whole record"
        if starts
        else f"its prefix is longer than {_PREFIX_LIMIT} characters"
    )


def _starts(message: str) -> list[int]:
    """Return the offset of each ``IN=… OUT=`` at which a message's packet fields may begin.

    There may be several, because a log prefix can also contain ``IN=… OUT=``.
    """
    starts = []
    start = message.find("IN=")
    while 0 <= start <= _PREFIX_LIMIT:
        if _DEVICES.match(message, start) is not None:
            starts.append(start)
        # They may overlap, because a network device may be named ``IN=``.
        start = message.find("IN=", start + 1)
    return starts


def _packet(message: str, start: int) -> Facts:
    match = _COMMON.fullmatch(message, start)
    if match is not None:
        facts = _common_facts(match)
        if facts is not None:
            return facts
    # It also reports the fault if a value is out of range.
    # Only unusual lines need it, and it takes as long to import as this module.
    from ocsf_nft.sources.text import grammar  # noqa: PLC0415

    return grammar.read(message[start:])


@lru_cache(maxsize=512)
def _flags(words: str) -> int:
    return sum(TCP_FLAGS[word] for word in words.split())


def _common_facts(  # noqa: C901, PLR0912, PLR0915 - one pass, unrolled: this is the hot path
    match: re.Match[str],
) -> Facts | None:
    """Return the values in a usual log line, by name; None if a value is out of range.

    A usual line is about a TCP or UDP packet. ``match`` is the line's match of the regular
    expression ``_COMMON``.
    """
    (
        input_device, output_device, ethernet_header, mac_source, mac_destination, ethertype,
        source_text, destination_text, length_text, tos, precedence, ttl_text, id_text, df,
        class_text, hop_text, label_text,
        tcp_source, tcp_destination, sequence_text, acknowledgment_text, window_text, reserved,
        flags, urgent_text, options,
        udp_source, udp_destination, udp_length_text, uid_text, gid_text, mark,
    ) = match.groups()  # fmt: skip
    source, destination = canonical_address(source_text), canonical_address(destination_text)
    length = int(length_text)
    if source is None or destination is None or length > 0xFFFF:
        return None
    facts: Facts = {"source": source, "destination": destination, "length": length}
    if ttl_text is not None:
        ttl, ident = int(ttl_text), int(id_text)
        if ":" in source or ":" in destination or ttl > 0xFF or ident > 0xFFFF:
            return None
        facts["ip_version"] = 4
        facts["tos"] = int(tos, 16) | int(precedence, 16)
        facts["ttl"] = ttl
        facts["ip_id"] = ident
        if df is not None:
            facts["dont_fragment"] = True
    else:
        traffic_class, hops, label = int(class_text), int(hop_text), int(label_text)
        if ":" not in source or ":" not in destination:
            return None
        if traffic_class > 0xFF or hops > 0xFF or label > 0xFFFFF:
            return None
        facts["ip_version"] = 6
        facts["traffic_class"] = traffic_class
        facts["hop_limit"] = hops
        facts["flow_label"] = label
    if udp_source is not None:
        source_port, destination_port = int(udp_source), int(udp_destination)
        udp_length = int(udp_length_text)
        if source_port > 0xFFFF or destination_port > 0xFFFF or udp_length > 0xFFFF:
            return None
        facts["protocol"] = UDP
        facts["udp_length"] = udp_length
    else:
        source_port, destination_port = int(tcp_source), int(tcp_destination)
        window, urgent, bits = int(window_text), int(urgent_text), int(reserved, 16)
        if source_port > 0xFFFF or destination_port > 0xFFFF or window > 0xFFFF or urgent > 0xFFFF:
            return None
        facts["protocol"] = TCP
        facts["tcp_window"] = window
        facts["tcp_reserved"] = bits >> RESERVED_SHIFT
        facts["tcp_flags"] = _flags(flags) | (TCP_FLAGS["AE"] if bits & RESERVED_AE else 0)
        facts["tcp_urgent_pointer"] = urgent
        if sequence_text is not None:
            sequence, acknowledgment = int(sequence_text), int(acknowledgment_text)
            if sequence > 0xFFFFFFFF or acknowledgment > 0xFFFFFFFF:
                return None
            facts["tcp_sequence"] = sequence
            facts["tcp_acknowledgment"] = acknowledgment
        if options is not None:
            facts["tcp_options"] = options.lower()
    facts["source_port"] = source_port
    facts["destination_port"] = destination_port
    if input_device:
        facts["in_interface"] = input_device
    if output_device:
        facts["out_interface"] = output_device
    if ethernet_header is not None:
        facts.update(fact.link_facts(bytes.fromhex(ethernet_header.replace(":", ""))))
    elif mac_source is not None:
        facts["mac_source"] = mac_source
        facts["mac_destination"] = mac_destination
        facts["ethertype"] = int(ethertype, 16)
    if uid_text is not None:
        uid, gid = int(uid_text), int(gid_text)
        if uid > 0xFFFFFFFF or gid > 0xFFFFFFFF:
            return None
        facts["uid"] = uid
        facts["gid"] = gid
    if mark is not None:
        facts["mark"] = int(mark, 16)
    return facts
