"""Conversion of an open finding about a sandbox's protection to a stored value, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.protection_findings import KINDS, ProtectionSeries, RelatedFact

if TYPE_CHECKING:
    from ocsf_nft.process import Process

#: Errors of a value that is no valid finding.
DAMAGE: Final = (KeyError, TypeError, ValueError, RecursionError)
#: Attributes that are stored unchanged.
_PLAIN: Final = ("sandbox", "identity", "count", "start_ms", "end_ms", "unknown", "is_tampering")


def to_bytes(series: ProtectionSeries) -> bytes:
    """Return the value to store."""
    state = {name: getattr(series, name) for name in _PLAIN}
    state |= {
        "kind": series.kind.code,
        "severity": series.severity.name,
        "latest": [list(each) for each in series.latest],
        "processes": series.processes,
    }
    try:
        return orjson.dumps(state)
    except orjson.JSONEncodeError:
        # orjson supports neither halves of surrogate pairs nor integers of more than 64 bits.
        return json.dumps(state, default=_fields).encode()


def from_bytes(value: bytes) -> ProtectionSeries:
    """Return the finding of a stored value; raises one of the errors in :data:`DAMAGE`.

    The result does not last: if its fault is still there, the next event reports that again.
    """
    state = json.loads(value)
    return ProtectionSeries(
        **{name: state[name] for name in _PLAIN},
        kind=KINDS[state["kind"]],
        severity=Severity[state["severity"]],
        latest=tuple(RelatedFact(*each) for each in state["latest"]),
        processes=_processes(state["processes"]),
    )


def _processes(found: Any) -> tuple[Process, ...]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only a restored finding needs it

    from ocsf_nft.process import Process  # noqa: PLC0415 - as above

    processes: tuple[Process, ...] = TypeAdapter(tuple[Process, ...]).validate_python(found)
    return processes


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}
