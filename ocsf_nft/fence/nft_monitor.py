"""Monitor of a fence's nftables tables in one network namespace.

The monitor reads the kernel's notices about changes, and sends transactions that restore the
tables.
"""

from __future__ import annotations

import contextlib
import errno
import select
import threading
from typing import TYPE_CHECKING, Final

from ocsf_nft import nfnetlink
from ocsf_nft.errors import FenceError, SourceError, UnsupportedError
from ocsf_nft.fence import rule_counters, table_changes
from ocsf_nft.fence.host_notices import QueuedNotices
from ocsf_nft.fence.ruleset_changes import ChangeReader, Transaction
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ocsf_nft.fence.host_notices import HostNotices
    from ocsf_nft.fence.rule_counters import NamedCounter
    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Statement

_RECEIVE_BYTES: Final = 1 << 16
#: Maximum of datagrams in one read, so that it ends.
_MAX_DATAGRAMS: Final = 1024
#: The end of a transaction follows its parts in a separate datagram, later if its process loses the
#: CPU. The kernel starts no other transaction before, so that this wait delays no restore.
_END_SECONDS: Final = 1.0
#: The same if the kernel has dropped notices, maybe that end too: then a wait delays a restore.
_END_SECONDS_AFTER_DROP: Final = 0.02
#: Attempts, if other processes change the ruleset all the time.
_TRIES: Final = 8
#: Placeholder for dropped notices.
OVERRUN: Final = Transaction(
    changes="more changes were made at once than could be read, maybe to other tables",
)


class NftMonitor:
    """Monitor of a fence's nftables tables, with two netlink sockets in one network namespace.

    Only one thread may call :meth:`read`; any thread may call :meth:`generation` and the methods
    that change tables. Methods raise OSError if a socket fails.
    """

    def __init__(
        self,
        namespace: Namespace,
        tables: tuple[TableId, ...],
        shared: HostNotices | None = None,
    ) -> None:
        """Open two netlink sockets in a namespace: one to monitor ``tables``, one to restore them.

        With ``shared``, the namespace is the host's, and these notices replace the first socket.
        Raises SourceError if a socket can't be opened, AbsentError if the namespace does not exist,
        and UnsupportedError if the namespace can't be entered.
        """
        self.namespace = namespace
        #: Identity of the sockets' namespace; another one may have the same name by now.
        self.identity = namespace.identity()
        self.is_owner = False
        #: A generation is the kernel's number of a ruleset; each transaction increments it. Changes
        #: up to this one count as made by ocsf-nft, later changes as tampering. None: all changes
        #: count as tampering.
        self.regular_generation: int | None = None
        self.tables = tables
        self._changes = ChangeReader(tables)
        #: Whether notices were dropped since the socket was last empty.
        self._has_dropped = False
        #: Held during each change by the socket.
        self._lock = threading.RLock()
        # Changes up to ``restored_generation`` were reverted, accepted, or made before this. It is
        # never below ``regular_generation``, which restore() leaves: a revert is no acceptance.
        try:
            self.notices: socket.socket | QueuedNotices
            subscribe = nfnetlink.subscribe if shared is None else lambda: shared.subscribe(tables)
            opened = namespace.call(lambda: _open_sockets(subscribe))
            self.notices, self._nftables, self.restored_generation = opened
        except OSError as error:
            raise SourceError(
                f"the fence in {namespace} can't be watched: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Close both sockets."""
        self.notices.close()
        self._nftables.close()

    def read(self) -> list[Transaction]:
        """Read the kernel's queued notices; return other processes' changes to monitored tables.

        The method may wait briefly for the rest of a change. If the kernel dropped notices, the
        result contains :data:`OVERRUN` in place of the missing changes.
        """
        found: list[Transaction] = []
        poll = select.poll()
        poll.register(self.notices, select.POLLIN)
        for _ in range(_MAX_DATAGRAMS):
            try:
                datagram, sender = self.notices.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                seconds = _END_SECONDS_AFTER_DROP if self._has_dropped else _END_SECONDS
                if self._changes.awaits_end and poll.poll(seconds * 1000):
                    continue
                found += self._changes.take_unfinished()
                self._has_dropped = False
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._has_dropped = True
                found.append(OVERRUN)
                continue
            if sender[0] == 0:  # other processes can send to this socket too
                found += self._changes.read(memoryview(datagram))
        return [each for each in found if each.port != self._nftables.port]

    def take_foreign(self) -> tuple[Transaction, ...]:
        """Return other processes' changes to other tables, chains and rules, each only once.

        The latest ones are enough: a check of the ruleset finds the objects.
        """
        found = self._changes.take_foreign()
        return tuple(each for each in found if each.port != self._nftables.port)

    def is_reverted(self, transaction: Transaction) -> bool:
        """Return True if a transaction needs no repair: it was reverted, or checked and accepted.

        Return False if the number of the resulting ruleset is unknown.
        """
        return _is_up_to(transaction.generation, self.restored_generation)

    def is_regular(self, transaction: Transaction) -> bool:
        """Return True if an nftables transaction does not count as tampering with the fence.

        Such a transaction belongs to an installation of the fence, or a later check found the fence
        intact. Return False if the number of the resulting ruleset is unknown.
        """
        return _is_up_to(transaction.generation, self.regular_generation)

    def generation(self) -> int:
        """Return the number of the present ruleset; each transaction increments this number."""
        with self._lock:
            try:
                return self._nftables.generation()
            except TimeoutError:
                self._reopen()
                raise

    def generation_now(self) -> int | None:
        """Return the number of the present ruleset without a wait; None if it is not known."""
        if not self._lock.acquire(blocking=False):  # a change may take any time
            return None
        try:
            return self._nftables.generation()
        except OSError:
            return None
        finally:
            self._lock.release()

    def has_read_all(self) -> bool:
        """Return True if :meth:`read` has read all changes; return False also if it is not known.

        Call it in the thread that calls :meth:`read`.
        """
        poll = select.poll()
        poll.register(self.notices, select.POLLIN)
        # The kernel changes the number before it sends the notices.
        generation = self.generation_now()
        if generation is None or generation & 0xFFFF != self._changes.number:
            return False
        return not poll.poll(0)

    def counters_now(self, table: TableId, names: Sequence[str]) -> list[NamedCounter] | None:
        """Return counters of a table in this order without a wait; None if that is not possible.

        Raises FileNotFoundError if one is missing.
        """
        if not self._lock.acquire(blocking=False):  # a change may take any time
            return None
        try:
            return rule_counters.read_counters(self._nftables, *table, names)
        except TimeoutError:
            self._reopen()
            return None
        finally:
            self._lock.release()

    def version_now(self) -> int | None:
        """Return a number that changes with the tables, without a wait; None if it is not known.

        It also changes with other tables of the namespace, unless the notices are shared.
        """
        if not isinstance(self.notices, QueuedNotices):
            return self.generation_now()
        try:
            self.notices.refresh()
        except OSError:
            return None
        return self.notices.transactions

    def accept(self, generation: int) -> None:
        """Accept all nftables changes up to the ruleset with the number ``generation``.

        Accepted changes are not reverted, and do not count as tampering.
        """
        with self._lock:
            # Otherwise a later ruleset was already restored or accepted.
            if _is_up_to(self.restored_generation, generation):
                self.restored_generation = self.regular_generation = generation

    def restore(self, statements: Sequence[Statement]) -> None:
        """Restore the fence after changes: execute ``statements`` in one transaction.

        The transaction is repeated if another process changes the ruleset at the same time. Raises
        OSError if the kernel rejects a statement.
        """
        with self._lock:
            for _ in range(_TRIES):
                before = self._nftables.generation()
                try:
                    self.commit(statements, before)
                except OSError as error:
                    if error.errno != errno.ERESTART:
                        raise
                else:
                    self.restored_generation = before + 1
                    return
            # Another process changes the ruleset without a pause. Then restore once more than
            # necessary.
            self.commit(statements)

    def commit(self, statements: Sequence[Statement], generation: int | None = None) -> None:
        """Execute all statements in one transaction, or none of them.

        ``generation`` is the number that the present ruleset must have; None allows any number.
        Raises the errors of :meth:`Nftables.commit`.
        """
        with self._lock:
            try:
                self._nftables.commit(statements, generation)
            except TimeoutError:
                self._reopen()  # so that the monitor can still be used
                raise

    def take_ownership(self) -> None:
        """Make this monitor's socket the only one that can change the fence's tables.

        Sets ``is_owner`` to True. If a table is missing, nothing changes and ``is_owner`` is False.
        Raises PermissionError if another socket owns a table.
        """
        with self._lock:
            self.is_owner = False
            # The last attempt ignores later changes: a process that changes the ruleset all the
            # time can't prevent ownership.
            for is_last in (*[False] * _TRIES, True):
                before = self._nftables.generation()
                # A statement for a missing table would create that table.
                if any(self._nftables.table(*table_id) is None for table_id in self.tables):
                    return
                statements = [
                    table_changes.ownership_statement(table_id) for table_id in self.tables
                ]
                try:
                    self.commit(statements, None if is_last else before)
                except OSError as error:
                    if error.errno != errno.ERESTART:
                        raise
                else:
                    self.is_owner = True
                    return

    def _reopen(self) -> None:
        # The kernel's late answer may still arrive on the old socket.
        fresh = self.namespace.call(Nftables)
        self._nftables.close()
        self._nftables = fresh
        if self.is_owner:
            with contextlib.suppress(OSError):  # tried again after the next check
                self.take_ownership()


def _open_sockets(
    subscribe: Callable[[], socket.socket | QueuedNotices],
) -> tuple[socket.socket | QueuedNotices, Nftables, int]:
    nftables = Nftables()
    try:
        # Read first, so that the notices cover the changes after it.
        generation = nftables.generation()
        return subscribe(), nftables, generation
    except BaseException:
        nftables.close()
        raise


def _is_up_to(earlier: int | None, generation: int | None) -> bool:
    if earlier is None or generation is None:
        return False
    # The numbers wrap around at 2^32.
    return (generation - earlier) & 0xFFFFFFFF < 1 << 31


def ruleset_error(error: OSError) -> FenceError | UnsupportedError:
    """Return the exception to raise if the kernel has refused to load a fence with ``error``."""
    reason = table_changes.ownership_failure(error)
    if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
        return UnsupportedError(f"this kernel can't do what the fence needs ({reason})")
    if isinstance(error, PermissionError):
        return FenceError(f"the fence's tables can't be changed: {reason}")
    return FenceError(f"the kernel refused the fence: {reason}")
