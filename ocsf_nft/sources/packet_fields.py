"""Facts of a packet by name, and the Record that they make.

The reader of kernel text and the reader of packet bytes both use this module. A fact has the same
name and the same form in both, so that equal packets make equal Records. A fact goes into the
field of :class:`Record` with its name; without such a field it goes into ``details``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.log_prefixes import PREFIX_CHARACTERS
from ocsf_nft.record import VM_RULES, Record, split_prefix

if TYPE_CHECKING:
    from ocsf_nft.record import Detail, Origin

#: Facts of one packet by name; see the names in ``packet`` and ``grammar``.
Facts: TypeAlias = "dict[str, Detail]"

#: Ethernet's header: destination, source, type (IEEE 802.3).
ETHERNET_BYTES: Final = 14

#: Names of facts with a field in Record: the fields that may be None, except ``verdict``.
_FIELDS: Final = tuple(
    field.name for field in fields(Record) if field.default is None and field.name != "verdict"
)
_OWNERS: Final = frozenset({"uid", "gid"})
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
) -> Record:
    """Return the Record of a packet's facts; ``facts`` becomes its details and is not copied."""
    known: dict[str, Any] = {name: facts.pop(name) for name in _FIELDS if name in facts}
    parts = (_split if len(prefix) <= PREFIX_CHARACTERS else split_prefix)(prefix)
    if parts.rule in VM_RULES:
        known = {name: value for name, value in known.items() if name not in _OWNERS}
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
        **known,
    )


def canonical_address(text: str) -> str | None:
    """Return an IP address in canonical form; ``None`` if invalid or with a zone index."""
    return _canonical(text) if len(text) <= _ADDRESS_CHARACTERS else None


@lru_cache(maxsize=_CACHED)
def _canonical(text: str) -> str | None:
    if "%" in text or not text.isascii():
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def mac_text(packed: bytes) -> str:
    """Return a hardware address in lower-case hexadecimal, separated by colons."""
    return packed.hex(":")


def link_facts(header: bytes) -> Facts:
    """Return the facts of a link-layer header.

    A header of 14 bytes is Ethernet's. A header of another length (a SIT tunnel's, FireWire's)
    stays undecoded.
    """
    if len(header) == ETHERNET_BYTES:
        return {
            "mac_destination": mac_text(header[:6]),
            "mac_source": mac_text(header[6:12]),
            "ethertype": int.from_bytes(header[12:14], "big"),
        }
    return {"link_header": header.hex()} if header else {}


def vlan_facts(protocol: int, tag: int) -> Facts:
    """Return the facts of a VLAN tag control field (IEEE 802.1Q); the kernel prints ``VID``."""
    facts: Facts = {"vlan_protocol": protocol, "vlan_id": tag & 0xFFF, "vlan_priority": tag >> 13}
    if tag & 0x1000:
        facts["vlan_drop_eligible"] = True
    return facts


def readable(raw: bytes) -> str:
    r"""Decode UTF-8 to text that any encoder accepts; invalid bytes become ``\xNN``."""
    return raw.decode("utf-8", "backslashreplace")
