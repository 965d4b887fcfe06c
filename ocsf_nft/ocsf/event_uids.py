"""Identifiers that come out the same whenever the same thing is told again.

They are UUIDs of version 5 (RFC 9562): a hash of what is identified, under a namespace of ours.
"""

from __future__ import annotations

import json
from hashlib import sha1
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from ocsf_nft.attempt import AggregationReason
    from ocsf_nft.record import Record

#: Never to be changed: event uids of all versions derive from it.
_NAMESPACE: Final = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61").bytes
#: Of a digit in the place of the variant, the last two bits stay (RFC 9562, 4.1).
_VARIANTS: Final = {f"{digit:x}": f"{digit & 0b11 | 0b1000:x}" for digit in range(16)}

#: The class whose events are each of one record.
NETWORK_ACTIVITY: Final = 4001


def stable_uid(*parts: str | int | None) -> str:
    """The UUID of ``parts``; other parts, in number or in kind, give another one.

    Any text will do, lone surrogates included.
    """
    return _uuid5(_json(parts))


def _json(parts: tuple[str | int | None, ...]) -> bytes:
    """As :mod:`json` writes it without spaces: all but printable ASCII as an escape."""
    try:
        told = orjson.dumps(parts)
    except TypeError:  # a lone surrogate, or a number past 64 bits
        return _escaped(parts)
    return told if told.isascii() and b"\x7f" not in told else _escaped(parts)


def _escaped(parts: tuple[str | int | None, ...]) -> bytes:
    return json.dumps(parts, separators=(",", ":")).encode()


def event_uid(class_uid: int, identity: str) -> str:
    """The uid of the event of one class that one record becomes."""
    return _uuid5(f"{class_uid}:{identity}".encode("utf-8", "surrogatepass"))


def streak_uid(identity: str) -> str:
    """What the attempts of one streak share with what is found of them."""
    return stable_uid("streak", identity)


def attempt_uid(record: Record) -> str:
    """What attempts of one flow share of which nobody knows whether one follows the other.

    The flow is of sandbox, rule, user, protocol, destination and port.
    """
    return stable_uid(
        "attempt",
        record.prefix if record.sandbox is None else record.sandbox,
        record.sandbox is None,
        record.rule,
        record.uid,
        record.protocol,
        record.destination,
        record.destination_port,
    )


def merged_uid(sandbox: str | None, rule: str, uid: int | None, why: AggregationReason) -> str:
    """What all attempts that are several flows of one user share, where the reason is the same."""
    return stable_uid("merged", sandbox, rule, uid, why)


def _uuid5(name: bytes) -> str:
    digest = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = _VARIANTS[digest[16]]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
