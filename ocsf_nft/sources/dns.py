"""Decoder of the question in a DNS query (RFC 1035), from the first bytes of a packet.

Multicast DNS (RFC 6762) and LLMNR (RFC 4795) have the same format.
"""

from __future__ import annotations

import struct
from typing import Final

from ocsf_nft.record import DnsQuestion

#: Destination ports of queries: DNS, multicast DNS, LLMNR.
PORTS: Final = frozenset({53, 5353, 5355})

#: Identifier, flags, and the number of questions; three more numbers follow.
_HEADER: Final = struct.Struct("!2xHH6x")
_TYPE_AND_CLASS: Final = struct.Struct("!HH")
#: Flags: the message is a response; its kind of query (opcode), where 0 is an ordinary one.
_RESPONSE_OR_OPCODE: Final = 0xF800
_INTERNET: Final = 1
#: In multicast DNS, the first bit of the class requests a unicast answer.
_CLASS_BITS: Final = 0x7FFF
_MAX_LABEL: Final = 63
_MAX_NAME: Final = 255
#: A header, the root as name, a type and a class.
_SHORTEST: Final = _HEADER.size + 1 + _TYPE_AND_CLASS.size
_SPECIAL: Final = frozenset(b'"().;\\@$')


def question(payload: bytes, *, is_tcp: bool) -> DnsQuestion | None:
    """Return the first question of a DNS query; None if the bytes are no complete query.

    ``payload`` has the captured bytes after the UDP or TCP header. Name servers answer only the
    first question of a message. Responses, other kinds of messages, and classes other than Internet
    are ignored, so that random bytes are hardly ever taken for a name.
    """
    if is_tcp:  # two bytes with the length of the message come first (RFC 1035, section 4.2.2)
        if int.from_bytes(payload[:2], "big") < _SHORTEST:
            return None
        payload = payload[2:]
    if len(payload) < _SHORTEST:
        return None
    flags, questions = _HEADER.unpack_from(payload)
    if flags & _RESPONSE_OR_OPCODE or not questions:
        return None
    found = _labels(payload, _HEADER.size)
    if found is None or len(payload) < found[1] + _TYPE_AND_CLASS.size:
        return None
    labels, end = found
    kind, network_class = _TYPE_AND_CLASS.unpack_from(payload, end)
    if network_class & _CLASS_BITS != _INTERNET:
        return None
    return DnsQuestion(".".join(map(_text, labels)) or ".", kind)


def _labels(message: bytes, at: int) -> tuple[list[bytes], int] | None:
    """Return the labels of the name at the offset ``at``, and the offset after the name.

    Return None if a label is cut or too long. A compression pointer refers to an earlier name in
    the message (RFC 1035, section 4.1.4), and before the first question there is none.
    """
    labels: list[bytes] = []
    size = 1
    while at < len(message) and (length := message[at]):
        label = message[at + 1 : at + 1 + length]
        size += 1 + length
        if length > _MAX_LABEL or size > _MAX_NAME or len(label) < length:
            return None
        labels.append(label)
        at += 1 + length
    return (labels, at + 1) if at < len(message) else None


def _escaped(byte: int) -> str:
    if byte in _SPECIAL:
        return f"\\{byte:c}"
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"


_TEXTS: Final = tuple(map(_escaped, range(256)))


def _text(label: bytes) -> str:
    # Names are equal in either case (RFC 4343), and some resolvers mix the cases at random.
    return "".join(_TEXTS[byte] for byte in label.lower())
