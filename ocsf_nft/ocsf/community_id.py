"""Community ID version 1: a hash that identifies a flow, the same in all network tools.

The specification is https://github.com/corelight/community-id-spec. The seed of the hash is 0, the
usual default.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from hashlib import sha1
from typing import TYPE_CHECKING, Final, TypeGuard

from ocsf_nft.ocsf import protocols

if TYPE_CHECKING:
    from ocsf_nft.record import Detail, Record

_SEED: Final = b"\0\0"
_PORTS: Final = struct.Struct("!HH")

#: ICMP message types in pairs (request and reply): the two "ports" of such a flow are the pair. Any
#: other message is a flow of one direction, and its "ports" are its type and code.
_ICMP_PAIRS: Final = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 10: 9, 9: 10, 17: 18, 18: 17}
_ICMPV6_PAIRS: Final = {
    128: 129, 129: 128, 130: 131, 131: 130, 133: 134, 134: 133,
    135: 136, 136: 135, 139: 140, 140: 139, 144: 145, 145: 144,
}  # fmt: skip

#: Protocols with ports.
_WITH_PORTS: Final = frozenset({protocols.TCP, protocols.UDP, protocols.SCTP})
_ICMP: Final = frozenset({protocols.ICMP, protocols.ICMPV6})


def community_id(
    protocol: int,
    source: bytes,
    destination: bytes,
    ports: tuple[int, int] | None,
    *,
    one_way: bool = False,
) -> str:
    """Return the Community ID of a flow; without ``one_way``, both directions have the same ID.

    Addresses are in network order. For an ICMP request or reply, ``ports`` has its type and the
    opposite message's type, such as (8, 0). For other ICMP messages, ``ports`` has the type and the
    code, and ``one_way`` must be true.
    """
    if not one_way and _is_backwards(source, destination, ports):
        source, destination = destination, source
        ports = None if ports is None else (ports[1], ports[0])
    packed = _SEED + source + destination + bytes((protocol, 0))
    if ports is not None:
        packed += _PORTS.pack(*ports)
    digest = sha1(packed, usedforsecurity=False).digest()
    return f"1:{b2a_base64(digest, newline=False).decode()}"


def _is_backwards(source: bytes, destination: bytes, ports: tuple[int, int] | None) -> bool:
    if source == destination:
        return ports is not None and ports[0] > ports[1]
    return source > destination


def of_record(record: Record, source: bytes | None, destination: bytes | None) -> str | None:
    """Return the Community ID of a log record's flow; None if the record lacks a needed field.

    ``source`` and ``destination`` are the record's addresses, as bytes in network order.
    """
    protocol = record.protocol
    if protocol is None or source is None or destination is None:
        return None
    one_way = False
    ports: tuple[int, int] | None = None
    if protocol in _ICMP:
        kind, code = record.details.get("icmp_type"), record.details.get("icmp_code")
        if not _is_octet(kind) or not _is_octet(code):
            return None
        pairs = _ICMP_PAIRS if protocol == protocols.ICMP else _ICMPV6_PAIRS
        one_way = kind not in pairs
        ports = (kind, pairs.get(kind, code))
    elif protocol in _WITH_PORTS:
        if record.source_port is None or record.destination_port is None:
            return None
        ports = (record.source_port, record.destination_port)
    return community_id(protocol, source, destination, ports, one_way=one_way)


def _is_octet(value: Detail | None) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= 0xFF
