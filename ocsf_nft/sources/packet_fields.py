"""What both readers, of text and of packets, make of a packet: facts by name, then a Record.

A fact has the same name and the same form whichever way it came, so that equal packets make equal
Records. A fact that is a field of :class:`Record` goes there, every other one into ``details``.
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

#: Each fact that a Record has a field for can be missing, and nothing else can.
_FIELDS: Final = tuple(
    field.name for field in fields(Record) if field.default is None and field.name != "verdict"
)
_OWNERS: Final = frozenset({"uid", "gid"})
_CACHED: Final = 16384

#: A device's name has at most 15 bytes (IFNAMSIZ in include/uapi/linux/if.h); ``readable`` makes
#: four characters of each byte that is not UTF-8.
DEVICE_CHARACTERS: Final = 4 * 15
#: INET6_ADDRSTRLEN in include/linux/inet.h, without the final zero.
_ADDRESS_CHARACTERS: Final = 45

_split = lru_cache(maxsize=1024)(split_prefix)


def record(  # noqa: PLR0913 - what a source knows of a packet besides its facts
    prefix: str,
    facts: Facts,
    *,
    time_ns: int,
    received_ns: int,
    origin: Origin,
    captured_sum: int | None = None,
) -> Record:
    """The Record of a packet's facts; ``facts`` is taken over, not copied."""
    known: dict[str, Any] = {name: facts.pop(name) for name in _FIELDS if name in facts}
    said = (_split if len(prefix) <= PREFIX_CHARACTERS else split_prefix)(prefix)
    if said.rule in VM_RULES:
        known = {name: value for name, value in known.items() if name not in _OWNERS}
    return Record(
        prefix=prefix,
        sandbox=said.sandbox,
        rule=said.rule,
        verdict=said.verdict,
        details=facts,
        time_ns=time_ns,
        received_ns=received_ns,
        origin=origin,
        captured_sum=captured_sum,
        **known,
    )


def canonical_address(text: str) -> str | None:
    """An address in canonical form; ``None`` when it is none (a zone index makes it none)."""
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
    """A hardware address with lower-case colons."""
    return packed.hex(":")


def link_facts(header: bytes) -> Facts:
    """The facts of a link-layer header.

    Fourteen bytes are Ethernet's; any other length (a SIT tunnel's, FireWire's) stays as it is.
    """
    if len(header) == ETHERNET_BYTES:
        return {
            "mac_destination": mac_text(header[:6]),
            "mac_source": mac_text(header[6:12]),
            "ethertype": int.from_bytes(header[12:14], "big"),
        }
    return {"link_header": header.hex()} if header else {}


def vlan_facts(protocol: int, tag: int) -> Facts:
    """The facts of a VLAN tag control field (IEEE 802.1Q), which the kernel prints as ``VID``."""
    facts: Facts = {"vlan_protocol": protocol, "vlan_id": tag & 0xFFF, "vlan_priority": tag >> 13}
    if tag & 0x1000:
        facts["vlan_drop_eligible"] = True
    return facts


def readable(raw: bytes) -> str:
    r"""Bytes that should be UTF-8, as text that any encoder takes; others become ``\xNN``."""
    return raw.decode("utf-8", "backslashreplace")
