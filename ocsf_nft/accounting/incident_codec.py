"""Conversion of open incidents and scans to JSON text for the state database, and back.

An incident is a series of a flow's refused packets. The end of an open incident is not reported
yet.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, get_args

import orjson

from ocsf_nft.accounting.flow_counter import MAX_COUNT
from ocsf_nft.accounting.open_incidents import OpenFanOut, OpenIncident
from ocsf_nft.attempt import FanOut, Incident, IncidentEnd
from ocsf_nft.flow import KINDS, Flow, Key, flow
from ocsf_nft.process import Attribution, ConfidenceLevel, Container, Method, Process, Seen
from ocsf_nft.record import LogFormat, Origin, Record, Transport, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.open_incidents import OpenEntry

_Reader: TypeAlias = "Callable[[Any], Any]"
_T = TypeVar("_T")


def encode(opened: OpenEntry) -> str:
    """Convert an open incident or scan to JSON text for the state database."""
    if isinstance(opened, OpenFanOut):
        state: dict[str, Any] = {"fan_out": opened.end}
    else:
        kind, data = opened.key
        state = {"key": (kind, data.hex()), "incident_end": opened.end}
    try:
        return orjson.dumps(state).decode()
    except orjson.JSONEncodeError:
        # orjson supports neither halves of surrogate pairs nor integers of more than 64 bits.
        return json.dumps(state, default=_fields)


def decode(counter_id: CounterId, text: str) -> OpenEntry:
    """Convert a JSON text of :func:`encode` back to the open incident or scan.

    The text does not contain ``counter_id``, so it is an argument. Raises ValueError, or another
    error in the tuple ``state_db._DAMAGE``, if the text is damaged.
    """
    state = json.loads(text)
    if "fan_out" in state:
        return OpenFanOut(counter_id, _build(FanOut, _FAN_OUT, state["fan_out"]))
    kind, data = state["key"]
    key = Key(_one_of(*KINDS)(kind), bytes.fromhex(data))
    flow(key)
    return OpenIncident(counter_id, key, _build(IncidentEnd, _INCIDENT_END, state["incident_end"]))


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}


def _build(kind: Callable[..., _T], readers: Mapping[str, _Reader], state: Any) -> _T:
    # A field that an earlier version of ocsf-nft did not store is read as None.
    return kind(**{name: reader(state.get(name)) for name, reader in readers.items()})


def _nested(kind: Callable[..., Any], readers: Mapping[str, _Reader]) -> _Reader:
    return lambda state: _build(kind, readers, state)


def _each(reader: _Reader) -> _Reader:
    def read_all(found: Any) -> tuple[Any, ...]:
        if not isinstance(found, list):
            raise TypeError("not a list")
        return tuple(map(reader, found))

    return read_all


def _maybe(reader: _Reader) -> _Reader:
    return lambda value: None if value is None else reader(value)


def _one_of(*values: str) -> _Reader:
    def reader(value: Any) -> Any:
        if value not in values:
            raise ValueError("an unknown value")
        return value

    return reader


def _up_to(most: int, least: int = 0) -> _Reader:
    def reader(value: Any) -> int:
        # A number outside its valid range shows that the database is damaged.
        if type(value) is not int or not least <= value <= most:
            raise ValueError("no such number")
        return value

    return reader


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _details(found: Any) -> dict[str, Any]:
    for value in found.values():
        if isinstance(value, dict):
            _details(value)
        elif not isinstance(value, int | str):
            raise TypeError("not a valid detail of a record")
    return dict(found)


_LONG: Final = _up_to((1 << 63) - 1, -(1 << 63))
_PACKETS: Final = _up_to(MAX_COUNT)
_16_BITS: Final = _maybe(_up_to(0xFFFF))
_32_BITS: Final = _maybe(_up_to(0xFFFFFFFF))
_8_BITS: Final = _maybe(_up_to(0xFF))
_MAY_BE_TEXT: Final = _maybe(_text)

_ORIGIN: Final[Mapping[str, _Reader]] = {
    "transport": _one_of(*get_args(Transport)),
    "identity": _text,
    "log_source": _text,
    "log_format": _one_of(*get_args(LogFormat)),
    "raw": _text,
    "sequence": _maybe(_LONG),
    "original_time": _MAY_BE_TEXT,
}
_RECORD: Final[Mapping[str, _Reader]] = {
    "prefix": _text,
    "sandbox": _MAY_BE_TEXT,
    "rule": _text,
    "verdict": _maybe(_one_of(*get_args(Verdict))),
    "in_interface": _MAY_BE_TEXT,
    "out_interface": _MAY_BE_TEXT,
    "mac_source": _MAY_BE_TEXT,
    "mac_destination": _MAY_BE_TEXT,
    "ethertype": _16_BITS,
    "ip_version": _maybe(_up_to(6, 4)),
    "source": _MAY_BE_TEXT,
    "destination": _MAY_BE_TEXT,
    "protocol": _8_BITS,
    "source_port": _16_BITS,
    "destination_port": _16_BITS,
    "tcp_flags": _16_BITS,
    "length": _32_BITS,
    "uid": _32_BITS,
    "gid": _32_BITS,
    "details": _details,
    "time_ns": _LONG,
    "received_ns": _LONG,
    "captured_sum": _32_BITS,
    "origin": _nested(Origin, _ORIGIN),
}
_CONTAINER: Final[Mapping[str, _Reader]] = {
    "uid": _MAY_BE_TEXT,
    "name": _MAY_BE_TEXT,
    "runtime": _MAY_BE_TEXT,
    "image_uid": _MAY_BE_TEXT,
    "image_name": _MAY_BE_TEXT,
    "pod_uid": _MAY_BE_TEXT,
}
_PROCESS: Final[Mapping[str, _Reader]] = {
    "pid": _up_to(0xFFFFFFFF),
    "tid": _32_BITS,
    "name": _MAY_BE_TEXT,
    "path": _MAY_BE_TEXT,
    "is_deleted": _maybe(_flag),
    "sha256": _MAY_BE_TEXT,
    "cmd_line": _MAY_BE_TEXT,
    "working_directory": _MAY_BE_TEXT,
    "created_ns": _maybe(_LONG),
    "namespace_pid": _32_BITS,
    "uid": _32_BITS,
    "user_name": _MAY_BE_TEXT,
    "gid": _32_BITS,
    "group_name": _MAY_BE_TEXT,
    "container": _maybe(_nested(Container, _CONTAINER)),
    "unit": _MAY_BE_TEXT,
    "ancestors": _each(lambda found: _build(Process, _PROCESS, found)),
}
_SEEN: Final[Mapping[str, _Reader]] = {
    "process": _nested(Process, _PROCESS),
    "calls": _maybe(_PACKETS),
}
_ATTRIBUTION: Final[Mapping[str, _Reader]] = {
    "method": _one_of(*get_args(Method)),
    "confidence": _maybe(_one_of(*get_args(ConfidenceLevel))),
    "reason": _text,
    "process": _maybe(_nested(Process, _PROCESS)),
    "seen": _each(_nested(Seen, _SEEN)),
    "unnamed": _PACKETS,
    "user_name": _MAY_BE_TEXT,
    "group_name": _MAY_BE_TEXT,
    "sent_ns": _maybe(_LONG),
}
_INCIDENT: Final[Mapping[str, _Reader]] = {
    "identity": _text,
    "windows": _up_to(MAX_COUNT, 1),
    "packets": _PACKETS,
    "found_at": _maybe(_up_to(MAX_COUNT, 1)),
    "start_ns": _LONG,
    "latest": _each(_text),
    "attribution": _maybe(_nested(Attribution, _ATTRIBUTION)),
}
_INCIDENT_END: Final[Mapping[str, _Reader]] = {
    "record": _nested(Record, _RECORD),
    "incident": _nested(Incident, _INCIDENT),
    "end_ns": _LONG,
}
_FLOW: Final[Mapping[str, _Reader]] = {
    "uid": _32_BITS,
    "protocol": _8_BITS,
    "destination": _MAY_BE_TEXT,
    "port": _16_BITS,
    "ethertype": _16_BITS,
}
_FAN_OUT: Final[Mapping[str, _Reader]] = {
    "identity": _text,
    "stage": _one_of("ended"),
    "sandbox": _text,
    "rule": _text,
    "verdict": _maybe(_one_of("permit")),
    "uid": _32_BITS,
    "flows": _PACKETS,
    "destinations": _PACKETS,
    "ports": _PACKETS,
    "packets": _PACKETS,
    "sample": _each(_nested(Flow, _FLOW)),
    "start_ns": _LONG,
    "end_ns": _LONG,
}
