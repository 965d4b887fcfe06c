"""Identifiers that come out the same whenever the same thing is told again.

They are UUIDs of version 5 (RFC 9562): a hash of what is identified, under a namespace of ours.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING, Final
from uuid import UUID

from ocsf_nft.ocsf.caching import CACHED

if TYPE_CHECKING:
    from ocsf_nft.attempt import Merger
    from ocsf_nft.record import Record

#: Never to be changed: event uids of all versions derive from it.
_NAMESPACE: Final = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61").bytes


def stable_uid(*parts: str | int | None) -> str:
    """The UUID of ``parts``; other parts, in number or in kind, give another one.

    Any text will do, lone surrogates included.
    """
    return _uuid5(json.dumps(parts, separators=(",", ":")))


def event_uid(class_uid: int, identity: str) -> str:
    """The uid of the event of one class that one record becomes."""
    return _uuid5(f"{class_uid}:{identity}")


def attempt_uid(record: Record) -> str:
    """What all attempts of one flow share: sandbox, rule, uid, protocol, destination and port."""
    return _attempt_uid(
        record.prefix if record.sandbox is None else record.sandbox,
        record.sandbox is None,
        record.rule,
        record.uid,
        record.protocol,
        record.destination,
        record.destination_port,
    )


def merged_uid(sandbox: str | None, rule: str, uid: int | None, why: Merger) -> str:
    """What all attempts that are several flows of one user share, where the reason is the same."""
    return stable_uid("merged", sandbox, rule, uid, why)


@lru_cache(maxsize=CACHED)
def _attempt_uid(*key: str | int | None) -> str:
    return stable_uid("attempt", *key)


def _uuid5(name: str) -> str:
    digest = bytearray(
        sha1(_NAMESPACE + name.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    )
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"
