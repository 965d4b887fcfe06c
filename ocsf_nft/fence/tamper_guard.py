"""Guard that detects changes to a fence at once, and restores the fence.

To be fast, the guard sends netlink messages that were prepared before. The service later compares
the fence with its stored record.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, SourceError
from ocsf_nft.fence import installer, nft, restore_batch, table_changes
from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.host_notices import QueuedNotices
from ocsf_nft.fence.link_monitor import LinkMonitor
from ocsf_nft.fence.nft_monitor import OVERRUN, NftMonitor, ruleset_error
from ocsf_nft.fence.surroundings.watcher import SurroundingsWatcher

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Sequence

    from ocsf_nft.fence.guard_thread import GuardThread
    from ocsf_nft.fence.restore_batch import RestoreBatch
    from ocsf_nft.fence.rule_counters import NamedCounter
    from ocsf_nft.fence.ruleset_changes import Transaction
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.surroundings.news import SurroundingsNews
    from ocsf_nft.netns import Namespace

#: More restores than that within that time are a conflict with another process: then no restores
#: for a while.
MAX_RESTORES: Final = 10
RESTORE_WINDOW_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 60.0

#: Pause between two turns, if a process changes other tables, or creates links, in a loop.
_PAUSE_BETWEEN_TURNS_SECONDS: Final = 0.002
#: The same if nothing is restored, so that nothing is urgent.
_IDLE_PAUSE_SECONDS: Final = 0.05
#: News for the service: see :class:`TamperGuard`.
News: TypeAlias = "FenceChange | SurroundingsNews | Exception | None"
#: Result of a restore. ``restored``: by the guard, or by a check that was faster. ``none``: nothing
#: is restored, because another `ocsf-nft` process installed or removed the fence. ``failed``: the
#: fence could not be restored.
_Outcome: TypeAlias = Literal["restored", "none", "failed"]


class TamperGuard:
    """Guard of an installed fence, which restores it if another process changes it.

    The guard's turns are in the threads of ``thread``. They call ``notify`` with a
    :class:`FenceChange`, a :class:`SurroundingsNews`, an exception that ended the guard, or None
    (the fence should be checked).
    Without ``self_heal``, the guard restores nothing.
    """

    def __init__(
        self,
        installed: InstalledFence,
        state: StateDirectory,
        notify: Callable[[News], None],
        thread: GuardThread,
        *,
        self_heal: bool,
    ) -> None:
        self.pause_seconds = _PAUSE_BETWEEN_TURNS_SECONDS if self_heal else _IDLE_PAUSE_SECONDS
        self._thread = thread
        self._sandbox = installed.spec.sandbox
        self._namespace = installed.namespace
        self._state = state
        self._notify = notify
        self._self_heal = self_heal
        self._has_failed = False
        #: Whether a fence was loaded by nft, since the guard's socket could not.
        self._has_used_nft = False
        self._restore_batch: RestoreBatch | None = None
        self._record_version: tuple[int, ...] | None = None
        self._restore_times: deque[float] = deque(maxlen=MAX_RESTORES)
        self._paused_until: float | None = None
        self._overruns_from = 0.0
        with contextlib.ExitStack() as stack:
            (namespace, tables), *guards = installed.tables_by_namespace()
            self._monitors = [
                stack.enter_context(contextlib.closing(NftMonitor(namespace, tables)))
            ]
            self._monitors += [
                stack.enter_context(
                    contextlib.closing(NftMonitor(*each, shared=thread.host_notices))
                )
                for each in guards
            ]
            self._links = LinkMonitor(self._monitors[0], installed.spec.tap)
            stack.enter_context(self._links.notices)
            self._sockets = stack.pop_all()
        #: None for a VM: the fence of a VM is not in the namespace of the VM.
        self._surroundings: SurroundingsWatcher | None = None
        if installed.spec.tap is None:
            self._surroundings = SurroundingsWatcher(
                installed, state, self._links.seen, self._links.notices, notify,
                self_heal=self_heal, tables=self._monitors[0],
            )  # fmt: skip

    @property
    def namespace_socket(self) -> socket.socket:
        """Return a socket in the sandbox's network namespace; it is open until :meth:`stop`."""
        found = self._monitors[0].notices
        if isinstance(found, QueuedNotices):
            raise TypeError("the first monitor is that of the sandbox's namespace")
        return found

    def counters_now(self, table: TableId, names: Sequence[str]) -> list[NamedCounter] | None:
        """Return counters in the sandbox's namespace: see :meth:`NftMonitor.counters_now`."""
        return self._monitors[0].counters_now(table, names)

    @property
    def is_paused(self) -> bool:
        """Return True during a pause, in which the guard restores nothing.

        A pause begins after too many restores within a minute. The pause lasts a minute.
        """
        return self._paused_until is not None

    @property
    def attachments(self) -> int:
        """Return how often the guard has attached the fence to new interfaces.

        The interfaces may have been removed again.
        """
        return self._links.attachments

    def start(self) -> None:
        """Start the guard."""
        self._thread.add(self)

    def stop(self) -> None:
        """Stop the guard, wait for the end of its turn, and close its sockets."""
        self._thread.remove(self)
        if not self._has_failed:
            self._run(self._handle_rest)  # notices that arrived meanwhile
        self._sockets.close()

    def awaited(self, now: float) -> tuple[int, ...]:
        """Return the descriptors with notices that are handled at ``now`` (monotonic)."""
        monitors = () if self.is_paused else self._monitors
        found = [monitor.notices.fileno() for monitor in monitors]
        if now >= self._links.reads_from:
            found.append(self._links.notices.fileno())
        return tuple(found)

    def deadline(self, now: float) -> float | None:
        """Return when the guard has to do something without a notice (monotonic), or None."""
        found = [] if self._paused_until is None else [self._paused_until]
        if now < self._links.reads_from:
            found.append(self._links.reads_from)
        if self._surroundings is not None:
            found.append(self._surroundings.deadline())
        return min(found, default=None)

    def turn(self, ready: Collection[int]) -> bool:
        """Handle the notices on the descriptors in ``ready``; return False after a failure."""
        return self._run(lambda: self._turn(ready))

    def generations(self) -> tuple[int, ...]:
        """Return the generation of the ruleset in each namespace where the fence has tables.

        Raises OSError if a generation can't be read.
        """
        return tuple(monitor.generation() for monitor in self._monitors)

    def generations_now(self) -> tuple[int, ...] | None:
        """Return the generations without a wait; None if one is not known."""
        found = [monitor.generation_now() for monitor in self._monitors]
        known = tuple(each for each in found if each is not None)
        return known if len(known) == len(found) else None

    def versions_now(self) -> tuple[int, ...] | None:
        """Return numbers that change with the fence's tables; None if one is not known."""
        found = [monitor.version_now() for monitor in self._monitors]
        known = tuple(each for each in found if each is not None)
        return known if len(known) == len(found) else None

    def use_restore_batch(
        self,
        batch: RestoreBatch | None,
        version: tuple[int, ...] | None,
        generations: tuple[int, ...] | None = None,
    ) -> None:
        """Set the netlink messages that restore the fence; with None, :meth:`renew` restores it.

        The guard restores nothing while the version of the fence's record is not ``version``. Pass
        ``generations`` only if a check found no difference: the result of :meth:`generations`
        before the check. The guard never reverts changes up to these generations.
        """
        if generations is not None:
            for monitor, generation in zip(self._monitors, generations, strict=True):
                monitor.accept(generation)
        self._restore_batch, self._record_version = batch, version

    def take_ownership(self) -> None:
        """Let only the guard's sockets change the fence's tables, until the guard stops.

        Blocks until the kernel answers. Nothing changes in a namespace where a table is missing.
        Raises FenceError if the kernel refuses.
        """
        try:
            for monitor in self._monitors:
                if not monitor.is_owner:
                    monitor.take_ownership()
        except OSError as error:
            raise FenceError(
                f"the tables of sandbox {self._sandbox} can't be owned exclusively by this run: "
                f"{table_changes.ownership_failure(error)}"
            ) from error

    def renew(self) -> InstalledFence | None:
        """Restore the fence from its stored record, and return this record; None without a record.

        Works like :func:`installer.renew`, but through the guard's sockets. Blocks. Raises the
        errors of :func:`installer.renew`.
        """
        try:
            with installer.renewal_lock(self._sandbox, self._state):
                # Another process may have installed it again. The guard may read the notices of
                # that installation later.
                is_same = self._state.version(self._sandbox) == self._record_version
                # Only the guard's sockets can change tables that they own exclusively.
                renewed = installer.renew_locked(self._sandbox, self._state, self._load)
                batch = self._restore_batch
                if is_same and (batch is None or (renewed and batch.is_valid_for(renewed))):
                    self._record_version = self._state.version(self._sandbox)
                else:  # installed again by another process: the batch doesn't match
                    for monitor in self._monitors:
                        monitor.regular_generation = monitor.restored_generation
        finally:  # the new ruleset may lack the latest links
            self._links.attach(self._restore_batch, self._links.new)
        return renewed

    def replace(self, spec: FenceSpec, transport: LogTransport | None) -> InstalledFence:
        """Replace the fence by one with another policy in one transaction, and return its record.

        Works like :func:`installer.install`, but through the guard's sockets. Blocks. Raises
        AbsentError if the fenced namespace exists no more, and the errors of
        :func:`installer.install`.
        """
        with self._state.locked(self._sandbox):
            record = self._state.read(self._sandbox)
            namespace = self._namespace if record is None else record.namespace
            self._has_used_nft = False
            try:
                load = self._load_in_known
                return installer.install_locked(spec, namespace, self._state, transport, load)
            finally:  # also after an error, which may have left the previous fence
                self._restore_batch = None
                self._record_version = self._state.version(self._sandbox)
                for monitor in self._monitors:
                    monitor.regular_generation = monitor.restored_generation
                    if self._has_used_nft:  # its transactions are no tampering
                        with contextlib.suppress(OSError):
                            monitor.accept(monitor.generation())

    @property
    def is_untouched(self) -> bool:
        """Return True if no ruleset has changed since the guard has loaded the fence itself."""
        if self._has_used_nft:
            return False
        loaded = tuple(monitor.restored_generation for monitor in self._monitors)
        return self.generations_now() == loaded

    def _load_in_known(self, namespace: Namespace, text: str) -> None:
        """Do the same as :meth:`_load`; raise AbsentError for a successor of the namespace."""
        if namespace.identity() not in {each.identity for each in self._monitors}:
            raise AbsentError(f"the network namespace of sandbox {self._sandbox} has ended")
        self._load(namespace, text)

    def _load(self, namespace: Namespace, text: str) -> None:
        """Load a ruleset by the guard's socket in a namespace, or by nft if that can't be done."""
        where = namespace.identity()
        monitor = next((each for each in self._monitors if each.identity == where), None)
        if monitor is not None:
            try:
                monitor.restore(restore_batch.compile_ruleset(namespace, text))
            except FenceError:
                if monitor.is_owner:  # nft can't change tables that the socket owns exclusively
                    raise
            except OSError as error:
                # nft may send more at once.
                if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS} or monitor.is_owner:
                    raise ruleset_error(error) from error
            else:
                return
        self._has_used_nft = True
        nft.load(namespace, text)

    def _run(self, work: Callable[[], None]) -> bool:
        """Run ``work``; return False, and report the failure, if it raises an error."""
        try:
            work()
        except OSError as error:
            self._notify(
                SourceError(f"the fence in {self._namespace} can't be watched: {error.strerror}")
            )
        except Exception as error:  # noqa: BLE001 - raised in FenceEvents.changes()
            self._notify(error)
        else:
            return True
        self._has_failed = True
        return False

    def _turn(self, ready: Collection[int]) -> None:
        """Handle changes of nftables, interfaces or routes; end a pause that is over."""
        if self._paused_until is not None and time.monotonic() >= self._paused_until:
            self._end_pause()
        for monitor in self._monitors:
            if monitor.notices.fileno() in ready:
                self._handle_notices(monitor)
        if self._links.notices.fileno() in ready:
            attaches = self._self_heal and not self.is_paused
            if self._links.read(self._restore_batch, attaches=attaches):
                self._notify(None)  # a link or a route has changed: the fence should be checked
        if self._surroundings is not None:
            self._surroundings.turn()

    def _handle_rest(self) -> None:
        for monitor in self._monitors:
            self._handle_notices(monitor)

    def _handle_notices(self, monitor: NftMonitor) -> None:
        found = monitor.read()
        if self._surroundings is not None and monitor is self._monitors[0]:
            others = monitor.take_foreign()
            self._surroundings.take_transactions(
                (*others, *(each for each in found if each is OVERRUN))
            )
        reverted = [each for each in found if monitor.is_reverted(each)]
        if reverted := [each for each in reverted if not monitor.is_regular(each)]:
            # A check was faster.
            change = FenceChange.of(reverted, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            self._notify(replace(change, restored_after_ns=0))
        while foreign := [each for each in found if not monitor.is_reverted(each)]:
            found = self._react(monitor, foreign)

    def _react(self, monitor: NftMonitor, foreign: list[Transaction]) -> list[Transaction]:
        """Restore the fence after other processes changed it; report their changes, ``foreign``.

        Return the changes that arrived during the restore, which the caller must handle.
        """
        started, arrived_ns = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        # A process that changes very much at once, as some do to their own tables, is no conflict.
        is_certain = any(each is not OVERRUN for each in foreign)
        given_up = self._self_heal and is_certain and self._is_in_conflict()
        outcome: _Outcome | None = None
        restored_after_ns = None
        later: list[Transaction] = []
        if self._self_heal and not given_up:
            outcome = self._restore(monitor, foreign)
            if outcome == "none":  # the installer may have missed the latest links
                self._links.attach(self._restore_batch, self._links.new)
        if outcome == "restored":
            restored_after_ns = time.monotonic_ns() - started
            # Notices dropped now may be only our own. The check that follows finds the others.
            later = [each for each in monitor.read() if each is not OVERRUN]
            # Changes before our own transaction were reverted by it too.
            foreign += [each for each in later if monitor.is_reverted(each)]
        if is_certain and outcome in {"restored", "failed"}:
            self._restore_times.append(time.monotonic())
        if not is_certain and not self._reports_overrun():
            self._notify(None)
            return later
        if given_up:  # before the report: the check that follows it must not restore the fence
            self._paused_until = time.monotonic() + PAUSE_SECONDS
        self._notify(
            replace(
                FenceChange.of(foreign, arrived_ns),
                restored_after_ns=restored_after_ns,
                given_up=given_up,
                is_regular=outcome == "none",
            )
        )
        return [] if given_up else later

    def _reports_overrun(self) -> bool:  # at most once a minute
        now = time.monotonic()
        if now < self._overruns_from:
            return False
        self._overruns_from = now + RESTORE_WINDOW_SECONDS
        return True

    def _is_in_conflict(self) -> bool:
        return (
            len(self._restore_times) == MAX_RESTORES
            and time.monotonic() - self._restore_times[0] < RESTORE_WINDOW_SECONDS
        )

    def _end_pause(self) -> None:
        self._restore_times.clear()
        for monitor in self._monitors:
            monitor.read()
        self._paused_until = None
        self._notify(None)

    def _restore(self, monitor: NftMonitor, foreign: Iterable[Transaction]) -> _Outcome:
        """Restore the fence after other processes' changes (``foreign``); return the outcome."""
        recreated = [table_id for each in foreign for table_id in each.created]
        try:
            with self._state.fence_locked(self._sandbox):
                # A regular installation or removal of a fence changes the record.
                if self._state.version(self._sandbox) != self._record_version:
                    return "none"
                if all(monitor.is_regular(each) for each in foreign):
                    return "none"  # the record was accepted after this thread had read them
                if all(monitor.is_reverted(each) for each in foreign):
                    return "restored"  # by a check that held the lock until now
                if self._restore_batch is not None:
                    with contextlib.suppress(OSError):
                        self._send(monitor, self._restore_batch, recreated)
                        return "restored"
            return "none" if self.renew() is None else "restored"
        except (OSError, OcsfNftError):  # a later check reports the error
            return "failed"

    def _send(self, monitor: NftMonitor, batch: RestoreBatch, recreated: Iterable[TableId]) -> None:
        for namespace_batch in batch.batches:
            if set(namespace_batch.tables) <= set(monitor.tables):
                full = namespace_batch.full
                more = restore_batch.attach_statements(full, self._links.new - batch.links)
                preserving = namespace_batch.preserving(recreated)
                if preserving is not None:
                    with contextlib.suppress(OSError):
                        monitor.restore((*preserving, *more))
                        continue
                monitor.restore((*full, *more))
