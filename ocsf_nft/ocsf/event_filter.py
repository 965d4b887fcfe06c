"""Filter of stored events, by the attributes of their JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.events import CLASS_UIDS
from ocsf_nft.ocsf.oneline import sandbox_or_host
from ocsf_nft.quoted import quoted
from ocsf_nft.time_text import since_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Maximum number of characters of a wrong value in a sentence.
_MOST_CHARACTERS: Final = 100
_SEVERITIES: Final = ("critical", "high", "informational", "low", "medium")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Filter of events: all conditions must match; None is no condition."""

    sandbox: str | None = None
    #: Accepted class_uids; if empty, all classes.
    classes: frozenset[int] = frozenset()
    #: Lowest severity_id.
    min_severity: int | None = None
    #: First time, and the first time after the selection, in ms since the epoch.
    from_ms: int | None = None
    until_ms: int | None = None
    #: The event's ``metadata.uid``.
    uid: str | None = None

    def __call__(self, line: bytes) -> bool:
        """Return True if the event with the JSON ``line`` is selected."""
        if self == _ALL:
            return True
        event: dict[str, Any] = orjson.loads(line)
        return (
            (self.sandbox is None or sandbox_or_host(event) == self.sandbox)
            and (not self.classes or event["class_uid"] in self.classes)
            and (self.min_severity is None or event["severity_id"] >= self.min_severity)
            and (self.from_ms is None or event["time"] >= self.from_ms)
            and (self.until_ms is None or event["time"] < self.until_ms)
            and (self.uid is None or event["metadata"]["uid"] == self.uid)
        )


_ALL: Final = EventFilter()


def event_filter(
    given: Mapping[str, str], classes: Iterable[str], *, prefix: str = ""
) -> EventFilter:
    """Return the filter with conditions that are given as texts.

    ``given`` may have ``sandbox``, ``severity`` (the lowest one), ``since``, ``until`` and ``uid``.
    ``classes`` are names or numbers. ``prefix`` is that of the names in the text of an error.
    Raises UsageError if a text is wrong.
    """
    severity, since, until = (given.get(name) for name in ("severity", "since", "until"))
    return EventFilter(
        sandbox=given.get("sandbox"),
        classes=frozenset(_class_uid(f"{prefix}class", each) for each in classes),
        min_severity=None if severity is None else _severity_id(f"{prefix}severity", severity),
        from_ms=None if since is None else since_ms(f"{prefix}since", since),
        until_ms=None if until is None else since_ms(f"{prefix}until", until),
        uid=given.get("uid"),
    )


def _severity_id(name: str, text: str) -> int:
    if text.lower() not in _SEVERITIES:
        raise UsageError(f"{name} {quoted(text)} is unknown: give one of {', '.join(_SEVERITIES)}")
    return int(Severity[text.upper()])


def _class_uid(name: str, text: str) -> int:
    known = CLASS_UIDS | {str(number): number for number in CLASS_UIDS.values()}
    if text not in known:
        shown = quoted(text[:_MOST_CHARACTERS])
        raise UsageError(f"{name} {shown} is not known: give one of {', '.join(known)}")
    return known[text]
