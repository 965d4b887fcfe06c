"""Recent activity of a sandbox, from its events: attempts, processes, and all other events.

Its size has a bound, whatever the events contain.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.oneline import shorthand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.ocsf.oneline import Segment, Style

_NETWORK_ACTIVITY: Final = 4001
#: Numbers of attempts, other events, and processes that are stored.
ATTEMPTS: Final = 200
OTHERS: Final = 20
PROCESSES: Final = 500
#: Name of all processes that are not stored by themselves.
REST: Final = "other processes"
#: Text in place of a process that no method could name.
UNKNOWN: Final = "unknown process"
_LABELS: Final = ("informational", "low", "medium", "high", "critical")
#: Characters before the time of day, in ``2026-11-24T23:47:46.123Z``, and up to its seconds.
_DATE, _SECONDS = len("2026-11-24T"), len("2026-11-24T23:47:46")


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """Attempt to leave the sandbox, as texts without control characters."""

    time: str
    severity: str
    #: Kind of the severity, which selects its colour.
    style: Style
    process: str
    destination: str
    outcome: str
    packets: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """Any other event of the sandbox, such as a change of its fence, or a finding."""

    time: str
    severity: str
    style: Style
    text: str


@dataclass(slots=True)
class ProcessCount:
    """Number of attempts and packets of a process."""

    attempts: int = 0
    packets: int = 0


class Activity:
    """Recent activity of one sandbox."""

    def __init__(self) -> None:
        self.attempts: deque[AttemptRow] = deque(maxlen=ATTEMPTS)
        self.others: deque[EventRow] = deque(maxlen=OTHERS)
        self._processes: dict[str, ProcessCount] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event; no decoded JSON raises an error."""
        segments = shorthand(event)
        time = _first(segments, "time")[_DATE:_SECONDS]
        severity = next(each for each in segments if each.style in _LABELS)
        label, style = severity.text.strip(), severity.style
        if event.get("class_uid") != _NETWORK_ACTIVITY:
            shown = [each.text for each in segments if each.style in {"who", "what", "hint"}]
            self.others.append(EventRow(time, label, style, "  ".join(shown)))
            return
        packets = _packets(event)
        process = _first(segments, "who") or UNKNOWN
        destination, outcome = _first(segments, "what"), _first(segments, "outcome")
        self.attempts.append(AttemptRow(time, label, style, process, destination, outcome, packets))
        self._count(process, packets)

    def processes(self) -> Sequence[tuple[str, ProcessCount]]:
        """Return the processes with their counts, those with the most packets first."""
        return sorted(self._processes.items(), key=lambda each: -each[1].packets)

    def _count(self, process: str, packets: int) -> None:
        found = self._processes.setdefault(process, ProcessCount())
        found.attempts += 1
        found.packets += packets
        if len(self._processes) > PROCESSES:
            self._merge_smallest(process)

    def _merge_smallest(self, newest: str) -> None:
        """Add the count of the process with the fewest packets to those of the rest."""
        names = [name for name in self._processes if name not in {newest, REST}]
        smallest = self._processes.pop(min(names, key=lambda name: self._processes[name].packets))
        rest = self._processes.setdefault(REST, ProcessCount())
        rest.attempts += smallest.attempts
        rest.packets += smallest.packets


def _packets(event: Mapping[str, Any]) -> int:
    count = event.get("count")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1


def _first(segments: Sequence[Segment], style: Style) -> str:
    return next((each.text for each in segments if each.style == style), "")
