"""Conversion of an open finding about a sandbox's protection to a stored value, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import orjson
from pydantic import TypeAdapter

from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.protection_findings import KINDS, ProtectionSeries, RelatedFact
from ocsf_nft.process import Process, brief
from ocsf_nft.state.sealed import seal, unseal

#: Errors of a value that is no valid finding.
DAMAGE: Final = (KeyError, TypeError, ValueError, RecursionError)
#: Attributes that are stored unchanged.
_PLAIN: Final = (
    "sandbox", "identity", "count", "start_ms", "end_ms", "unknown", "is_tampering", "lasts",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """Stored form of a series; see :class:`ProtectionSeries`."""

    kind: str
    sandbox: str | None
    identity: str
    count: int
    start_ms: int
    end_ms: int
    latest: tuple[tuple[str, int, str], ...]
    severity: str
    processes: tuple[Process, ...]
    unknown: int
    is_tampering: bool
    lasts: bool


def to_bytes(series: ProtectionSeries) -> bytes:
    """Return the value to store. Long texts of processes are cut."""
    state = {name: getattr(series, name) for name in _PLAIN}
    state |= {
        "kind": series.kind.code,
        "severity": series.severity.name,
        "latest": [list(each) for each in series.latest],
        # A process inside chooses them, and each event stores them again.
        "processes": list(map(brief, series.processes)),
    }
    try:
        value = orjson.dumps(state)
    except orjson.JSONEncodeError:
        # orjson supports neither halves of surrogate pairs nor integers of more than 64 bits.
        value = json.dumps(state, default=_fields).encode()
    return seal(value, series.uid.encode())


def from_bytes(uid: str, value: bytes) -> ProtectionSeries:
    """Return the finding that is stored under ``uid``; raises one of the errors in DAMAGE."""
    state = _adapter().validate_python(json.loads(unseal(value, uid.encode())))
    return ProtectionSeries(
        **{name: getattr(state, name) for name in _PLAIN},
        kind=KINDS[state.kind],
        severity=Severity[state.severity],
        latest=tuple(RelatedFact(*each) for each in state.latest),
        processes=state.processes,
    )


@cache
def _adapter() -> TypeAdapter[_Stored]:
    return TypeAdapter(_Stored)


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}
