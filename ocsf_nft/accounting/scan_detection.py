"""Detection of scans (fan-outs): one user tries many destinations or ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.accounting.flow_counter import MAX_COUNT
from ocsf_nft.accounting.open_incidents import OpenFanOut
from ocsf_nft.accounting.report_schedule import Schedule
from ocsf_nft.attempt import FanOut
from ocsf_nft.flow import flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.open_incidents import OpenIncidents
    from ocsf_nft.flow import Flow, Key

_Stage: TypeAlias = Literal["begun", "goes on", "ended"]

#: Number of distinct flows within ``WITHIN_NS`` that no ordinary program causes.
FLOWS: Final = 20
WITHIN_NS: Final = 60 * 1_000_000_000
_MAX_SAMPLE: Final = 10
#: Maximum number of distinct destinations and ports that are counted. A larger number is reported
#: as "at least".
_MAX_DISTINCT: Final = 4096
#: Maximum number of users with state. A process with a namespace may have thousands of user ids.
_MAX_USERS: Final = 1024


class _UserActivity:
    """Distinct flows of one user since ``since_ns``, counted to detect a scan."""

    __slots__ = (
        "before", "begun_ns", "destinations", "flows", "grew_ns", "identity", "is_reported",
        "last_ns", "packets", "ports", "sample", "schedule", "since_ns", "stored",
    )  # fmt: skip

    def __init__(self, identity: str, time_ns: int) -> None:
        self.identity = identity
        self.since_ns = self.last_ns = time_ns
        #: Time of the first and the last flow by the clock of ``due``, from its next call on.
        self.begun_ns: int | None = None
        self.grew_ns: int | None = None
        self.flows = self.packets = 0
        self.destinations: set[str] = set()
        self.ports: set[int] = set()
        self.sample: list[Flow] = []
        self.schedule: Schedule | None = None
        self.is_reported = True
        #: Totals reported before a restart. The addresses and ports themselves are not stored.
        self.before: FanOut | None = None
        #: Flows and packets at the last commit.
        self.stored = (0, 0)


class FanOuts:
    """Detector of scans (fan-outs) in the refused flows of one firewall rule, for each user."""

    def __init__(self, counter_id: CounterId, opened: OpenIncidents) -> None:
        self._counter_id = counter_id
        self._opened = opened
        self._activities: dict[int | None, _UserActivity] = {}

    def add_flow(self, key: Key, time_ns: int) -> None:
        """Count the new flow ``key`` for its user; ``time_ns`` is since the epoch, UTC."""
        decoded = flow(key)
        found = self._activities.get(decoded.uid)
        if found is None:
            if len(self._activities) >= _MAX_USERS and not self._evict_one():
                return
            counter_id = self._counter_id
            found = _UserActivity(
                f"{counter_id.epoch}/{counter_id.name}/{decoded.uid}/{time_ns}", time_ns
            )
            self._activities[decoded.uid] = found
        found.flows += 1
        found.last_ns = max(time_ns, found.since_ns)
        found.grew_ns = None
        found.is_reported = False
        if decoded.destination is not None and len(found.destinations) < _MAX_DISTINCT:
            found.destinations.add(decoded.destination)
        if decoded.port is not None and len(found.ports) < _MAX_DISTINCT:
            found.ports.add(decoded.port)
        if len(found.sample) < _MAX_SAMPLE:
            found.sample.append(decoded)

    def resume(self, opened: OpenFanOut) -> None:
        """Restore a detected scan after a restart of the service, to count its further packets.

        A scan (fan-out) is one user's packets to many destinations or ports. ``opened`` is the
        stored state of a scan that had not ended.
        """
        before = opened.end
        found = self._activities[before.uid] = _UserActivity(before.identity, before.start_ns)
        found.last_ns = before.end_ns
        found.flows, found.packets = found.stored = before.flows, before.packets
        found.sample = list(before.sample)
        found.before = before

    def count(self, uid: int | None, packets: int) -> None:
        """Add ``packets`` to the number of refused packets of the user ``uid``.

        ``uid`` is None if no socket sent the packets. Do nothing if :meth:`add_flow` has not
        counted a flow of this user before.
        """
        if found := self._activities.get(uid):
            found.packets = min(found.packets + packets, MAX_COUNT)

    def due(self, now_ns: int, *, closing: bool = False) -> Iterator[FanOut]:
        """Yield each scan for which an event is due now.

        An event is due at the start of a scan, at intervals while it grows, and at its end.
        With ``closing``, all scans end now. ``now_ns`` is from a monotonic clock.
        """
        for uid, found in list(self._activities.items()):
            found.begun_ns = now_ns if found.begun_ns is None else found.begun_ns
            found.grew_ns = now_ns if found.grew_ns is None else found.grew_ns
            is_over = closing or now_ns - found.grew_ns >= WITHIN_NS
            stage = _stage(found, now_ns, is_over=is_over)
            if found.schedule is None:
                if is_over or now_ns - found.begun_ns > WITHIN_NS:
                    del self._activities[uid]
                continue
            if found.stored != (found.flows, found.packets):
                found.stored = (found.flows, found.packets)
                end = self._of(uid, found, "ended")
                self._opened.update(OpenFanOut(self._counter_id, end))
            if stage is not None:
                found.is_reported = True
                yield self._of(uid, found, stage)
            if is_over:
                del self._activities[uid]
                self._opened.close(found.identity)
                yield self._of(uid, found, "ended")

    def _evict_one(self) -> bool:
        """Delete the counted flows of one user who has too few flows for a scan.

        Return False if there is no such user.
        """
        for uid, found in self._activities.items():
            if found.flows < FLOWS:
                del self._activities[uid]
                return True
        return False

    def _of(self, uid: int | None, found: _UserActivity, stage: _Stage) -> FanOut:
        before = found.before
        return FanOut(
            identity=found.identity,
            stage=stage,
            sandbox=self._counter_id.sandbox,
            rule=self._counter_id.rule,
            verdict=self._counter_id.verdict,
            uid=uid,
            flows=found.flows,
            destinations=max(len(found.destinations), 0 if before is None else before.destinations),
            ports=max(len(found.ports), 0 if before is None else before.ports),
            packets=max(found.packets, found.flows),
            sample=tuple(found.sample),
            start_ns=found.since_ns,
            end_ns=found.last_ns,
        )


def _stage(found: _UserActivity, now_ns: int, *, is_over: bool) -> _Stage | None:
    """Return the stage (``begun`` or ``goes on``) of the scan event that is due now, or None.

    With ``is_over``, the scan ends now. Then the result is ``begun`` if no event has reported the
    scan yet, else None. The caller itself adds the ``ended`` event.
    """
    if found.schedule is None:
        # Too few flows for a scan.
        if found.before is None and found.flows < FLOWS:
            return None
        found.schedule = Schedule(now_ns)
        # A scan that no event has reported yet begins, even at its end.
        return "begun" if found.before is None else None
    if found.is_reported or is_over or now_ns < found.schedule.due_ns:
        return None
    found.schedule.mark_reported(now_ns)
    return "goes on"
