"""Identifiers of events, incidents and flows: equal input gives the same identifier in every run.

They are UUIDs of version 5 (RFC 9562), which are hashes of the input. A Community ID identifies a
flow in all network tools: https://github.com/corelight/community-id-spec.
"""

from __future__ import annotations

import json
import struct
from binascii import b2a_base64
from hashlib import sha1
from typing import TYPE_CHECKING, Final, TypeGuard
from uuid import UUID

import orjson

from ocsf_nft.ocsf import protocols

if TYPE_CHECKING:
    from ocsf_nft.attempt import AggregationReason
    from ocsf_nft.record import Detail, Record

#: Must never change: the event uids of all versions derive from it.
_NAMESPACE: Final = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61").bytes
#: Hexadecimal digit with the variant of RFC 9562, section 4.1: the last two bits are unchanged.
_VARIANTS: Final = {f"{digit:x}": f"{digit & 0b11 | 0b1000:x}" for digit in range(16)}

#: ``class_uid`` of Network Activity: each of its events has one record.
NETWORK_ACTIVITY: Final = 4001

#: Start of what is hashed for the uid of a Network Activity event. The first 16 bytes are the
#: namespace, which all uids have.
EVENT_UID_START: Final = _NAMESPACE + b"%d:" % NETWORK_ACTIVITY

#: Seed of a Community ID: the usual default.
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


def stable_uid(*parts: str | int | None) -> str:
    """Return a UUID that is a hash of ``parts``: equal parts always give the same UUID.

    The type of a part matters: ``1`` and ``"1"`` give different UUIDs. A text may contain lone
    surrogates.
    """
    return _uuid5(_encoded(parts))


def _encoded(parts: tuple[str | int | None, ...]) -> bytes:
    """Encode parts as JSON in printable ASCII."""
    try:
        encoded = orjson.dumps(parts)
    except TypeError:  # a lone surrogate, or a number past 64 bits
        encoded = b""
    if not encoded or not encoded.isascii() or b"\x7f" in encoded:
        # The same JSON, with all characters outside printable ASCII escaped.
        encoded = json.dumps(parts, separators=(",", ":")).encode()
    return encoded


def event_uid(identity: str) -> str:
    """Return the ``metadata.uid`` of a Network Activity event from its record's ``identity``."""
    return _uuid(EVENT_UID_START + identity.encode("utf-8", "surrogatepass"))


def incident_uid(identity: str) -> str:
    """Return the uid of an incident from its identity (:attr:`Incident.identity`).

    Its finding has it as ``finding_info.uid``, and all its events as ``metadata.correlation_uid``.
    """
    return stable_uid("incident", identity)


def flow_uid(record: Record) -> str:
    """Return the uid that all attempts of a record's flow share if they are in no incident."""
    flow = record.uid, record.protocol, record.destination, record.destination_port
    return stable_uid(*_rule_parts(record), *flow)


def flow_uid_start(record: Record) -> bytes:
    """Return the beginning of the JSON that is hashed for :func:`flow_uid`: the parts of the rule.

    A comma and the user, protocol, destination and port follow in it.
    """
    return _encoded(_rule_parts(record))[:-1] + b","


def _rule_parts(record: Record) -> tuple[str | int | None, ...]:
    name = record.prefix if record.sandbox is None else record.sandbox
    return "attempt", name, record.sandbox is None, record.rule


def aggregation_uid(
    sandbox: str | None, rule: str, uid: int | None, reason: AggregationReason
) -> str:
    """Return the uid shared by events about aggregated flows of one sandbox, rule, user and reason.

    ``uid`` is a Linux user id, or None for several or unknown users.
    """
    return stable_uid("aggregation", sandbox, rule, uid, reason)


def _uuid5(name: bytes) -> str:
    return _uuid(_NAMESPACE + name)


def _uuid(hashed: bytes) -> str:
    digest = sha1(hashed, usedforsecurity=False).hexdigest()
    variant = _VARIANTS[digest[16]]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def community_id(record: Record, source: bytes | None, destination: bytes | None) -> str | None:
    """Return the Community ID of a log record's flow; None if the record lacks a needed field.

    Both directions of a flow have the same id, except for ICMP messages without a reply. ``source``
    and ``destination`` are the record's addresses, as bytes in network order.
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


def _is_octet(value: Detail | None) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= 0xFF
