"""Content of the frames from the delivery process, which talks to the network: nothing is trusted.

All functions raise LinkError if a frame is not valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.delivery.name_resolver import MAX_ADDRESSES
from ocsf_nft.errors import ClosedError, DeliveryError, OcsfNftError, UnsupportedError, UsageError
from ocsf_nft.fence.host_names import refusal_of
from ocsf_nft.service.delivery_link import Kind, LinkError, clean
from ocsf_nft.state.dropped_events import DroppedEvents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.fence.values import Address
    from ocsf_nft.service.delivery_link import Frame

#: Kinds of frames from the process, and the largest size of each.
MAX_BYTES: Final[Mapping[Kind, int]] = {
    Kind.OPENED: 64 << 10,
    Kind.STATUS: 1 << 20,
    Kind.LOG: 64 << 10,
    Kind.CLOSED: 64 << 10,
    Kind.RESOLVED: 64 << 10,
}
#: Largest numbers of dropped events and faults in one status, and of values in a log record.
_MAX_DROPPED: Final = 100
_MAX_FAULTS: Final = 9
_MAX_VALUES: Final = 20
#: Longest text of an address; one with a zone may be longer than 39 characters.
_MAX_ADDRESS: Final = 64
_ERRORS: Final[Mapping[str, type[OcsfNftError]]] = {
    each.__name__: each for each in (ClosedError, DeliveryError, UnsupportedError, UsageError)
}
_SINK_NUMBERS: Final = ("done", "delivered", "refused", "failures", "dead")
_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical"})
#: Name of a value in a log record, and names with another meaning in structlog.
_NAME: Final = re.compile(r"[a-z][a-z_]{0,39}", re.ASCII)
_RESERVED: Final = frozenset(
    {
        "event", "exc_info", "exception", "level", "method_name", "positional_args", "process",
        "self", "stack", "stack_info", "timestamp",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """Progress of the delivery to one sink, or of the iteration over the events."""

    name: str
    #: Number of the last event that needs no delivery any more.
    done: int
    #: Numbers of delivered and of refused events, and of failed deliveries, in this run.
    delivered: int
    refused: int
    failures: int
    #: Number of dead letters.
    dead: int
    #: Reason why the sink is down; None while it works.
    fault: str | None
    #: Number of stored events that the sink has not acknowledged.
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Progress of all sinks, and what no event has reported by the request ``synchronized``."""

    sinks: tuple[SinkStatus, ...] = ()
    #: Number of the last event that each sink has acknowledged.
    acknowledged: Mapping[str, int]
    #: Number of the latest request that is answered.
    synchronized: int = 0
    dropped: tuple[DroppedEvents, ...] = ()
    faults: tuple[str, ...] = ()
    #: Reason why the progress can't be stored; None while it can.
    storage_fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyAnswer:
    """Addresses of a host name in one version of IP, or the reason why there is no answer."""

    #: Addresses that a fence may allow, sorted.
    addresses: tuple[Address, ...] = ()
    #: Addresses that a name must not allow, and why, for people.
    refused: tuple[str, ...] = ()
    #: Time in seconds after which the answer is to be refreshed, as the name servers have it.
    ttl: int = 0
    #: Whether there is no such name.
    is_absent: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NameAnswer:
    """Answer about a host name."""

    #: Number of the request.
    number: int
    name: str
    #: Answers for both versions of IP: 4 and 6.
    families: Mapping[int, FamilyAnswer]


def answer(frame: Frame) -> tuple[int, OcsfNftError | None]:
    """Return the content of an ``OPENED`` frame: the request's number, and an error or None."""
    number, found = _list(frame.json(), 2)
    return _number(number), None if found is None else _error(found)


def closed(frame: Frame) -> OcsfNftError:
    """Return the error in a ``CLOSED`` frame."""
    return _error(frame.json())


def status(frame: Frame) -> Status:
    """Return the content of a ``STATUS`` frame; long texts and lists are shortened."""
    found = _dict(frame.json())
    dropped = [_list(each, 2) for each in _list(found.get("dropped"))[:_MAX_DROPPED]]
    acknowledged = _dict(found.get("acknowledged"))
    storage_fault = found.get("storage_fault")
    return Status(
        sinks=tuple(map(_sink, _list(found.get("sinks")))),
        acknowledged={name: _number(number) for name, number in acknowledged.items()},
        synchronized=_number(found.get("sync")),
        dropped=tuple(DroppedEvents(_text(name), _number(number)) for name, number in dropped),
        faults=tuple(map(_text, _list(found.get("faults"))[:_MAX_FAULTS])),
        storage_fault=None if storage_fault is None else _text(storage_fault),
    )


def log_record(frame: Frame) -> tuple[str, str, dict[str, Any]]:
    """Return the level, message and values of a ``LOG`` frame.

    Long texts are shortened, and values beyond a limit left out.
    """
    found = _dict(frame.json())
    level = _text(found.get("level"))
    if level not in _LEVELS:
        raise LinkError(f"the delivery process sent a log record of the level {level!r:.40}")
    allowed = (
        (name, _value(value))
        for name, value in found.items()
        if name not in _RESERVED and _NAME.fullmatch(name)
    )
    return level, _text(found.get("event")), dict(islice(allowed, _MAX_VALUES))


def resolved(frame: Frame) -> NameAnswer:
    """Return the content of a ``RESOLVED`` frame, without the addresses that no name may allow."""
    number, name, families = _list(frame.json(), 3)
    found = {version: _family(version, _dict(families).get(str(version))) for version in (4, 6)}
    return NameAnswer(number=_number(number), name=_text(name), families=found)


def _family(version: int, found: Any) -> FamilyAnswer:
    if "error" in _dict(found):
        return FamilyAnswer(error=_text(found["error"]))
    texts = _list(found.get("addresses"))
    if len(texts) > MAX_ADDRESSES:
        raise LinkError(f"the delivery process sent {len(texts)} addresses of one name")
    addresses = sorted({_address(version, each) for each in texts}, key=int)
    refusals = {each: refusal_of(each) for each in addresses}
    return FamilyAnswer(
        addresses=tuple(each for each, reason in refusals.items() if reason is None),
        refused=tuple(f"{each} ({reason})" for each, reason in refusals.items() if reason),
        ttl=_number(found.get("ttl")),
        is_absent=found.get("is_absent") is True,
    )


def _address(version: int, value: Any) -> Address:
    text = _text(value)
    try:
        address = ip_address(text) if len(text) <= _MAX_ADDRESS else None
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise LinkError(f"the delivery process sent {text!r:.100} as an IPv{version} address")
    return address


def _sink(found: Any) -> SinkStatus:
    fault = _dict(found).get("fault")
    return SinkStatus(
        name=str(found.get("name")),  # as it is in the configuration
        **{each: _number(found.get(each)) for each in _SINK_NUMBERS},
        fault=None if fault is None else _text(fault),
    )


def _error(found: Any) -> OcsfNftError:
    kind = _ERRORS.get(_text(_dict(found).get("kind")), DeliveryError)
    return kind(_text(found.get("reason")))


def _value(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    return _number(value) if isinstance(value, int) else _text(value)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LinkError("the delivery process sent no JSON object where one is needed")
    return value


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in {None, len(value)}:
        raise LinkError("the delivery process sent no list of the right length")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise LinkError("the delivery process sent no text where one is needed")
    return clean(value)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise LinkError("the delivery process sent no number where one is needed")
    return value
