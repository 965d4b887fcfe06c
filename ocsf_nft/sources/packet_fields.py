"""Conversion of a packet's header values to a Record.

A fact is a header value with a name, such as ``source_port``. A fact becomes the Record's field of
that name. If there is no such field, the fact becomes an item of the Record's ``details``.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.ip_text import packed, text_of
from ocsf_nft.log_prefixes import PREFIX_CHARACTERS
from ocsf_nft.record import VM_RULES, Record, split_prefix

if TYPE_CHECKING:
    from ocsf_nft.record import Detail, DnsQuestion, Origin

#: Facts of one packet by name; ``packet`` (bytes) and ``grammar`` (log text) use the same names.
Facts: TypeAlias = "dict[str, Detail]"

#: Ethernet's header: destination, source, type (IEEE 802.3).
ETHERNET_BYTES: Final = 14

#: Names of facts with a field in Record: the compared fields that may be None, except ``verdict``.
_FIELDS: Final = tuple(
    field.name
    for field in fields(Record)
    if field.default is None and field.compare and field.name != "verdict"
)
_CACHED: Final = 16384

#: An interface name has at most 15 bytes (IFNAMSIZ in include/uapi/linux/if.h); ``readable``
#: converts each byte that is not UTF-8 to four characters.
DEVICE_CHARACTERS: Final = 4 * 15
#: INET6_ADDRSTRLEN in include/linux/inet.h, without the final zero.
_ADDRESS_CHARACTERS: Final = 45

_split = lru_cache(maxsize=1024)(split_prefix)


def record(  # noqa: PLR0913 - a packet's facts and the metadata from its source
    prefix: str,
    facts: Facts,
    *,
    time_ns: int,
    received_ns: int,
    origin: Origin,
    captured_sum: int | None = None,
    question: DnsQuestion | None = None,
) -> Record:
    """Build the Record of a packet from its log prefix and its header values by name (``facts``).

    Don't use ``facts`` afterwards: the Record keeps this dictionary. ``time_ns`` is the time of
    logging, and ``received_ns`` is the time of reading, both since the epoch. ``captured_sum`` is
    the Adler-32 checksum of the packet's first bytes.
    """
    # What remains in ``facts`` becomes ``details`` of the Record, without a copy.
    known: dict[str, Any] = {name: facts.pop(name) for name in _FIELDS if name in facts}
    parts = (_split if len(prefix) <= PREFIX_CHARACTERS else split_prefix)(prefix)
    if parts.rule in VM_RULES:  # the ids are of a process on the host, but the sender is in the VM
        known.pop("uid", None)
        known.pop("gid", None)
    return Record(
        prefix=prefix,
        sandbox=parts.sandbox,
        rule=parts.rule,
        verdict=parts.verdict,
        details=facts,
        time_ns=time_ns,
        received_ns=received_ns,
        origin=origin,
        captured_sum=captured_sum,
        question=question,
        **known,
    )


def canonical_address(text: str) -> str | None:
    """Return an IP address in canonical text form (RFC 5952 for IPv6).

    Return None if the text is not an IP address, or has a zone index (such as ``%eth0``).
    """
    return _canonical(text) if len(text) <= _ADDRESS_CHARACTERS else None


@lru_cache(maxsize=_CACHED)
def _canonical(text: str) -> str | None:
    address = packed(text)
    return None if address is None else text_of(address)


def link_facts(header: bytes) -> Facts:
    """Decode a link-layer header to facts (header values by name).

    A header of 14 bytes is an Ethernet header. A header of another length becomes the fact
    ``link_header``, in hexadecimal. An empty header has no facts.
    """
    if len(header) == ETHERNET_BYTES:
        return {
            "mac_destination": header[:6].hex(":"),
            "mac_source": header[6:12].hex(":"),
            "ethertype": int.from_bytes(header[12:14], "big"),
        }
    return {"link_header": header.hex()} if header else {}


def vlan_facts(protocol: int, tag: int) -> Facts:
    """Decode a VLAN tag (IEEE 802.1Q) to facts: protocol, VLAN id, priority, drop eligibility.

    ``protocol`` is the tag's ethertype, and ``tag`` is its 16-bit control field.
    """
    facts: Facts = {"vlan_protocol": protocol, "vlan_id": tag & 0xFFF, "vlan_priority": tag >> 13}
    if tag & 0x1000:
        facts["vlan_drop_eligible"] = True
    return facts


def readable(raw: bytes) -> str:
    r"""Decode bytes as UTF-8; each invalid byte becomes four characters, such as ``\xff``."""
    return raw.decode("utf-8", "backslashreplace")
