"""Watcher of a fence's surroundings: detects changes that weaken the fence, and undoes them.

The kernel sends notices about interfaces, traffic control, routes, rules and nftables. Other facts
are read every few seconds.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from ocsf_nft import clocks, netns, rtnetlink
from ocsf_nft.errors import OcsfNftError, reason_of
from ocsf_nft.fence.surroundings import changes, own_tables, read_snapshot, undo
from ocsf_nft.fence.surroundings.authors import UNKNOWN, Author, Authors, senders_of
from ocsf_nft.fence.surroundings.changes import SurroundingChange
from ocsf_nft.fence.surroundings.facts import LinkFact
from ocsf_nft.fence.surroundings.foreign_links import ForeignLinks
from ocsf_nft.fence.surroundings.news import SurroundingsNews
from ocsf_nft.fence.surroundings.read_snapshot import Subject

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ocsf_nft.fence.nft_monitor import NftMonitor
    from ocsf_nft.fence.ruleset_changes import Transaction
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.surroundings.authors import Sender
    from ocsf_nft.fence.surroundings.facts import Snapshot
    from ocsf_nft.fence.surroundings.notices import RouteNotices

#: Time between two readings of the facts without notices, and between two full readings.
POLL_SECONDS: Final = 4.0
FULL_SECONDS: Final = 60.0
#: Pause after a check because of a notice. It doubles with each check that finds nothing new.
_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 1.0
#: Undos and reports within a window; more of them are a conflict with another process.
MOST_UNDOS: Final = 10
WINDOW_SECONDS: Final = 60.0
_CONFLICT_PAUSE_SECONDS: Final = 2.5
#: Time until a change is undone again that is left after an attempt.
RETRY_SECONDS: Final = 20.0
#: Kinds of changes that ordinary processes make briefly; the age at which they are reported.
_UNSETTLED: Final = frozenset({"route", "departure", "foreign pair"})
_SETTLE_SECONDS: Final = 1.0
#: Failed readings in a row until one is reported.
_FAILURES: Final = 3


class SurroundingsWatcher:
    """Watcher of one fence's surroundings; only one thread at a time may use it."""

    def __init__(  # noqa: PLR0913 - the parts of a watcher
        self,
        installed: InstalledFence,
        state: StateDirectory,
        notices: RouteNotices,
        inside: socket.socket,
        notify: Callable[[SurroundingsNews], None],
        *,
        self_heal: bool,
        tables: NftMonitor | None = None,
    ) -> None:
        """Create the watcher of a fence; ``inside`` is the socket of ``notices`` in its namespace.

        Without ``self_heal``, no change is undone. ``tables`` is the monitor of the fence's tables
        whose transactions :meth:`take_transactions` gets.
        """
        self._installed = installed
        self._state = state
        self._notices = notices
        self._inside = inside
        self._notify = notify
        self._self_heal = self_heal
        self._tables = tables
        self._record = installed
        self._subject = self._subject_of(installed)
        self._baseline = installed.accepted
        self._version = state.version(installed.spec.sandbox)
        self._last: Snapshot | None = None
        self._present: tuple[SurroundingChange, ...] = ()
        self._transactions: deque[Transaction] = deque(maxlen=MOST_UNDOS)
        self._is_pending = True
        self._next_check = self._next_poll = time.monotonic()
        self._next_full = 0.0
        self._pause = _PAUSE_SECONDS
        #: Times of the last undos, and of the last reports.
        self._undos: deque[float] = deque(maxlen=MOST_UNDOS)
        self._reports: deque[float] = deque(maxlen=MOST_UNDOS)
        self._failures = 0
        self._foreign = ForeignLinks(installed.identity)
        #: Changes of routes and the like, and when they were first found (monotonic).
        self._settling: dict[SurroundingChange, float] = {}
        #: Sockets that caused the changes of the last reading, as known when each was first found.
        self._senders: dict[SurroundingChange, Sender | None] = {}
        #: Changes that are left although they can be undone, and when to undo them (monotonic).
        self._retries: dict[SurroundingChange, float] = {}
        self._follow_uplinks()

    def take_transactions(self, transactions: Sequence[Transaction]) -> None:
        """Let the next turn check the tables that other processes have changed."""
        # Two senders are enough: then the process is unknown.
        known = {(each.pid, each.comm) for each in self._transactions}
        for each in transactions:
            if (each.pid, each.comm) not in known:
                known.add((each.pid, each.comm))
                self._transactions.append(each)
        self._is_pending |= bool(transactions)

    def deadline(self) -> float:
        """Return the time of the next turn (monotonic)."""
        if self._is_pending or self._notices.has_news:
            return min(self._next_check, self._next_poll)
        return self._next_poll

    def turn(self) -> None:
        """Check the surroundings if a check is due, undo what weakens the fence, and report it."""
        now = time.monotonic()
        is_noticed = self._is_pending or self._notices.has_news
        if now < (min(self._next_check, self._next_poll) if is_noticed else self._next_poll):
            return
        arrived_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        is_full = is_noticed or now >= self._next_full or self._last is None
        self._is_pending = False
        try:
            found_new = self._check(arrived_ns, is_full=is_full)
        except (OSError, OcsfNftError) as error:
            found_new = self._take_failure(error)
            self._is_pending = True  # the next check reads everything again
        else:
            self._failures = 0
            # After a failure, the next check may find changes of these senders.
            self._notices.clear()
            self._transactions.clear()
        self._notices.has_news = False
        self._schedule(is_full=is_full, is_noticed=is_noticed, found_new=found_new)

    def _schedule(self, *, is_full: bool, is_noticed: bool, found_new: bool) -> None:
        now = time.monotonic()
        if is_full:
            self._next_full = now + FULL_SECONDS
        if not is_noticed or found_new:
            self._pause = _PAUSE_SECONDS
        else:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        is_settling = any(each not in self._present for each in self._settling)
        self._next_poll = now + (_SETTLE_SECONDS if is_settling else POLL_SECONDS)
        self._next_check = now + (
            _CONFLICT_PAUSE_SECONDS if _is_full(self._reports) else self._pause
        )

    def _check(self, arrived_ns: int, *, is_full: bool) -> bool:
        """Check the surroundings; return True if there are changes that were not reported."""
        if self._last is None:
            self._foreign.begin()
        self._follow_record()
        found = self._read(is_full=is_full)
        present = frozenset(self._present)
        if own_tables.are_shared(self._installed.identity) and any(
            each.kind in {"chain", "rule"} and each not in present for each in found
        ):
            with self._state.locked():  # another fence may be in the middle of its installation
                found = self._read(is_full=True)
        # If the fence was removed by `ocsf-nft remove`, the id of its last gate is deleted, too.
        if self._state.version(self._installed.spec.sandbox) is None:
            return False
        added = tuple(each for each in found if each not in present)
        is_paused = self._self_heal and _is_full(self._undos)
        undone = () if is_paused else self._to_undo(found, present)
        if not added and not undone:
            self._plan_retries(found, ())
            if len(found) < len(present):
                self._report(found, (), arrived_ns)
            return False
        authors = self._authors(added, arrived_ns)
        if added:
            self._reports.append(time.monotonic())
        left, reasons = found, dict[SurroundingChange, str]()
        if undone:
            self._undos.append(time.monotonic())
            reasons = netns.call_beside(self._inside, partial(undo.undo, undone))
            left = self._read(is_full=True)
        self._plan_retries(left, undone)
        undone_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        author = authors.of_all(added)
        # A change may have ended though its undo failed. Earlier ones are not part of this report.
        refused = reasons.keys() & frozenset(left)
        failures = tuple(dict.fromkeys(reasons[each] for each in added if each in refused))
        self._report(
            left, added, arrived_ns, author, undone_ns, failures=failures, is_paused=is_paused
        )
        return bool(added)

    def _to_undo(
        self, found: tuple[SurroundingChange, ...], present: frozenset[SurroundingChange]
    ) -> tuple[SurroundingChange, ...]:
        """Return the changes to undo now: all that can be undone, if one is new or due again."""
        if not self._self_heal:
            return ()
        now = time.monotonic()
        undoable = tuple(each for each in found if each.can_be_undone)
        is_due = any(
            each not in present or self._retries.get(each, 0.0) <= now for each in undoable
        )
        return undoable if is_due else ()

    def _plan_retries(
        self, left: tuple[SurroundingChange, ...], tried: tuple[SurroundingChange, ...]
    ) -> None:
        """Plan when to undo the changes that are left: those in ``tried`` later, others soon."""
        later, attempted = time.monotonic() + RETRY_SECONDS, frozenset(tried)
        self._retries = {
            each: later if each in attempted else self._retries.get(each, 0.0)
            for each in left
            if each.can_be_undone
        }

    def _authors(self, added: tuple[SurroundingChange, ...], arrived_ns: int) -> Authors:
        """Return the authors of changes that have just been read."""
        senders = {each: sender for each in added if (sender := self._senders.get(each))}
        # A process whose notice is not read yet may have made the change.
        is_known = self._tables is None or self._tables.has_read_all()
        return Authors(
            senders, self._transactions if is_known else (), self._installed.identity, arrived_ns
        )

    def _report(  # noqa: PLR0913 - facts about the changes
        self,
        left: tuple[SurroundingChange, ...],
        added: tuple[SurroundingChange, ...],
        arrived_ns: int,
        author: Author = UNKNOWN,
        undone_ns: int | None = None,
        *,
        failures: tuple[str, ...] = (),
        is_paused: bool = False,
    ) -> None:
        is_left, is_known = frozenset(left), frozenset((*added, *self._present))
        undone = tuple(each for each in added if each not in is_left)
        # Others may have changed meanwhile: the next check reports them.
        self._present = tuple(each for each in left if each in is_known)
        self._is_pending |= len(self._present) < len(left)
        self._notify(
            SurroundingsNews(
                added=added,
                undone=undone,
                failures=failures,
                present=self._present,
                process=author.process,
                comm=author.comm,
                arrived_ns=arrived_ns + clocks.epoch_of(time.CLOCK_BOOTTIME),
                undone_after_ns=undone_ns - arrived_ns if undone and undone_ns else None,
                is_paused=is_paused,
            )
        )

    def _read(self, *, is_full: bool) -> tuple[SurroundingChange, ...]:
        known = None if is_full else self._last
        if own_tables.are_shared(self._installed.identity):  # fences come and go
            self._subject = self._subject_of(self._record)

        def inside() -> tuple[Snapshot, int | None]:
            # The number of the host's namespace is needed only if an interface was moved away.
            host = _number_of_host() if self._notices.moved else None
            if known is None:
                return read_snapshot.read(self._subject), host
            return read_snapshot.read_polled(self._subject, known), host

        snapshot, host = netns.call_beside(self._inside, inside)
        sandbox = self._installed.spec.sandbox
        self._last = read_snapshot.without_gates(snapshot, self._state, sandbox)
        for ifindex, number in self._notices.moved.items():
            # The engine has taken it back, before it deletes the namespace.
            if number == host and ifindex in self._notices.uplinks:
                self._notices.deleted.add(ifindex)
        self._notices.moved.clear()
        if self._baseline is None:  # an older version has installed the fence
            self._baseline = self._last
            self._follow_uplinks()
        self._foreign.take(self._notices.moves, self._baseline)
        self._notices.moves.clear()
        found = self._foreign.judged(changes.weakening(self._baseline, self._last))
        found = tuple(each for each in found if not self._is_end(each))
        self._note_senders(found)
        return self._settled(found)

    def _note_senders(self, found: tuple[SurroundingChange, ...]) -> None:
        """Note the sockets that caused the changes that were not in the last reading."""
        new = [each for each in found if each not in self._senders]
        known = self._senders
        # A process whose notice is not read yet may have made the change.
        if new and not _is_readable(self._inside):
            known = {**known, **senders_of(new, self._notices, self._inside)}
        self._senders = {each: known.get(each) for each in found}

    def _follow_uplinks(self) -> None:
        """Let the notices about the uplinks be noted."""
        if self._baseline is not None:
            self._notices.uplinks = frozenset(self._baseline.uplinks)

    def _subject_of(self, installed: InstalledFence) -> Subject:
        others = own_tables.of_others(installed.identity, self._state)
        return Subject.of(installed.spec, installed.around, others)

    def _settled(self, found: tuple[SurroundingChange, ...]) -> tuple[SurroundingChange, ...]:
        """Return the changes without those that may be brief.

        While addresses are renewed, a route may be missing. The notice about the end of an
        interface may come after its end. So may the notice that one end of a pair was moved away.
        A later check returns these changes if they last.
        """
        now = time.monotonic()
        self._settling = {
            each: self._settling.get(each, now) for each in found if _is_unsettled(each)
        }
        return tuple(
            each for each in found if now - self._settling.get(each, 0.0) >= _SETTLE_SECONDS
        )

    def _is_end(self, change: SurroundingChange) -> bool:
        """Return True if an uplink was deleted, so that nothing can leave by it."""
        was = change.before
        return (
            change.kind == "departure"
            and isinstance(was, LinkFact)
            and was.ifindex in self._notices.deleted
        )

    def _follow_record(self) -> None:
        """Use the present record of the fence, which may have been installed again."""
        sandbox = self._installed.spec.sandbox
        version = self._state.version(sandbox)
        if version == self._version:
            return
        found = self._state.read_or_none(sandbox)
        if found is not None and found.identity == self._installed.identity:
            self._record = found
            self._subject = self._subject_of(found)
            self._baseline = found.accepted or self._baseline
            self._follow_uplinks()
        self._version = version

    def _take_failure(self, error: Exception) -> bool:
        self._failures += 1
        if self._failures != _FAILURES:
            return False
        text = f"the surroundings can't be checked: {reason_of(error)}"
        change = SurroundingChange("limit", ("reading",), text)
        self._report(
            (*self._present, change), (change,), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        )
        return True


def _is_readable(sock: socket.socket) -> bool:
    """Return True if a socket has notices that were not received."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _number_of_host() -> int | None:
    """Return the number of this process's namespace in the calling thread's namespace."""
    descriptor = os.open(f"/proc/{os.getpid()}/ns/net", os.O_RDONLY)
    try:
        return rtnetlink.namespace_number(descriptor)
    finally:
        os.close(descriptor)


def _is_unsettled(change: SurroundingChange) -> bool:
    is_known_pair = change.kind == "foreign pair" and bool(change.is_from_inside)
    return change.kind in _UNSETTLED and not is_known_pair


def _is_full(times: deque[float]) -> bool:
    """Return True if the limit of a window is reached."""
    return len(times) == times.maxlen and time.monotonic() - times[0] < WINDOW_SECONDS
