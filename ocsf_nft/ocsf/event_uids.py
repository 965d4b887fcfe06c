"""Identifiers of events, incidents and flows: equal input gives the same identifier in every run.

The identifiers are UUIDs of version 5 (RFC 9562), which are hashes of the input.
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

#: Must never change: the event uids of all versions derive from it.
_NAMESPACE: Final = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61").bytes
#: Hexadecimal digit with the variant of RFC 9562, section 4.1: the last two bits are unchanged.
_VARIANTS: Final = {f"{digit:x}": f"{digit & 0b11 | 0b1000:x}" for digit in range(16)}

#: ``class_uid`` of Network Activity, whose events have one record each.
NETWORK_ACTIVITY: Final = 4001


def stable_uid(*parts: str | int | None) -> str:
    """Return a UUID that is a hash of ``parts``: equal parts always give the same UUID.

    The type of a part matters: ``1`` and ``"1"`` give different UUIDs. A text may contain lone
    surrogates.
    """
    return _uuid5(_json(parts))


def _json(parts: tuple[str | int | None, ...]) -> bytes:
    """Encode ``parts`` as JSON without spaces; escape all characters outside printable ASCII."""
    try:
        encoded = orjson.dumps(parts)
    except TypeError:  # a lone surrogate, or a number past 64 bits
        return _escaped(parts)
    return encoded if encoded.isascii() and b"\x7f" not in encoded else _escaped(parts)


def _escaped(parts: tuple[str | int | None, ...]) -> bytes:
    return json.dumps(parts, separators=(",", ":")).encode()


def event_uid(class_uid: int, identity: str) -> str:
    """Return the ``metadata.uid`` of an event that is made from one log record.

    ``class_uid`` is the OCSF class of the event, such as 4001. ``identity`` is the log record's
    ``origin.identity``.
    """
    return _uuid5(f"{class_uid}:{identity}".encode("utf-8", "surrogatepass"))


def incident_uid(identity: str) -> str:
    """Derive the uid of an incident from its identity (:attr:`Incident.identity`).

    This uid is ``finding_info.uid`` of the incident's finding. It is also
    ``metadata.correlation_uid`` of this finding, and of the events of the incident's attempts.
    """
    return stable_uid("incident", identity)


def flow_uid(record: Record) -> str:
    """Return the uid that all attempts of one flow have in common.

    This uid is for attempts that belong to no incident. ``record`` is any log record of the flow.
    Sandbox, rule, user, protocol, destination and port identify a flow.
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


def aggregation_uid(
    sandbox: str | None, rule: str, uid: int | None, reason: AggregationReason
) -> str:
    """Return the uid shared by events about aggregated flows of one sandbox, rule, user and reason.

    The argument ``uid`` is a Linux user id, or None for several or unknown users. ``reason`` is the
    reason for the aggregation.
    """
    return stable_uid("aggregation", sandbox, rule, uid, reason)


def _uuid5(name: bytes) -> str:
    digest = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = _VARIANTS[digest[16]]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
