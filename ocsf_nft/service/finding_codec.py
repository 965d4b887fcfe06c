"""Conversion of an open finding about a sandbox's protection to a stored value, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeAlias

import orjson
from pydantic import Field, TypeAdapter

from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.protection_findings import KINDS, ProtectionSeries, RelatedFact
from ocsf_nft.process import Process, brief

#: Errors of a value that is no valid finding.
DAMAGE: Final = (KeyError, TypeError, ValueError, RecursionError)
#: Attributes that are stored unchanged.
_PLAIN: Final = (
    "sandbox", "identity", "count", "start_ms", "end_ms", "unknown", "is_tampering", "lasts",
)  # fmt: skip
_KINDS: Final = {str(code): kind for code, kind in KINDS.items()}
#: Number, or time in ms. JSON of other programs has no larger ones (RFC 8259, section 6).
_Number: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """Stored form of a series; see :class:`ProtectionSeries`."""

    kind: str
    sandbox: str | None
    identity: str
    count: _Number
    start_ms: _Number
    end_ms: _Number
    latest: tuple[tuple[str, int, str], ...]
    severity: str
    processes: tuple[Process, ...]
    unknown: _Number
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
        return orjson.dumps(state)
    except orjson.JSONEncodeError:
        # orjson supports neither halves of surrogate pairs nor integers of more than 64 bits.
        return json.dumps(state, default=_fields).encode()


def from_bytes(value: bytes) -> ProtectionSeries:
    """Return the finding of a stored value; raises one of the errors in :data:`DAMAGE`."""
    state = _adapter().validate_python(json.loads(value))
    return ProtectionSeries(
        **{name: getattr(state, name) for name in _PLAIN},
        kind=_KINDS[state.kind],
        severity=Severity[state.severity],
        latest=tuple(RelatedFact(*each) for each in state.latest),
        processes=state.processes,
    )


@cache
def _adapter() -> TypeAdapter[_Stored]:
    return TypeAdapter(_Stored)


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}
