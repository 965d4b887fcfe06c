"""Monitor of a fence's tables in one namespace: it reads notices of changes and sends repairs."""

from __future__ import annotations

import contextlib
import errno
import select
import threading
from typing import TYPE_CHECKING, Final

from ocsf_nft import nfnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence import ruleset_batch
from ocsf_nft.fence.ruleset_changes import ChangeReader, Transaction
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ocsf_nft.fence.replace_keeping_counters import TableId
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Statement

_RECEIVE_BYTES: Final = 1 << 16
#: Maximum of datagrams in one read, so that it ends.
_MAX_DATAGRAMS: Final = 1024
#: The end of a transaction follows its parts at once, in a separate datagram.
_END_SECONDS: Final = 0.02
#: Attempts, if other processes change the ruleset all the time.
_TRIES: Final = 8
#: Placeholder for dropped notices.
OVERRUN: Final = Transaction(
    changes="more changes were made at once than could be read, maybe to other tables",
)


class NftMonitor:
    """Two netlink sockets in one namespace: one receives notices of changes to a fence's tables.

    The other one sends transactions that change these tables. One thread reads the notices; other
    threads may send transactions too. A method that uses a socket raises OSError; the constructor
    raises SourceError instead.

    A generation is the kernel's number of a state of the ruleset; each transaction increments it.
    Up to ``restored_generation``, every change was reverted or accepted, and needs no repair. Up to
    ``regular_generation``, every change counts as part of a regular installation.
    ``regular_generation`` is None before the first such installation.
    """

    def __init__(self, namespace: Namespace, tables: tuple[TableId, ...]) -> None:
        """Subscribe to the kernel's notices about changes to ``tables`` in a namespace.

        Raises SourceError, and the errors of :meth:`Namespace.call`.
        """
        self.namespace = namespace
        #: Identity of the sockets' namespace; another one may have the same name by now.
        self.identity = namespace.identity()
        self.is_owner = False
        self.regular_generation: int | None = None
        self.tables = tables
        self._changes = ChangeReader(tables)
        #: Held during each change by the socket.
        self._lock = threading.RLock()
        try:
            self.notices, self._nftables, self.restored_generation = namespace.call(_open_sockets)
        except OSError as error:
            raise SourceError(
                f"the fence in {namespace} can't be watched: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Close the sockets."""
        self.notices.close()
        self._nftables.close()

    def read(self) -> list[Transaction]:
        """Return the transactions of other processes whose notices have arrived; don't wait.

        :data:`OVERRUN` is returned in place of notices that the kernel dropped.
        """
        found: list[Transaction] = []
        poll = select.poll()
        poll.register(self.notices, select.POLLIN)
        for _ in range(_MAX_DATAGRAMS):
            try:
                datagram, sender = self.notices.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                if self._changes.is_incomplete and poll.poll(_END_SECONDS * 1000):
                    continue
                found += self._changes.take_unfinished()
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(OVERRUN)
                continue
            if sender[0] == 0:  # other processes can send to this socket too
                found += self._changes.read(memoryview(datagram))
        return [each for each in found if each.port != self._nftables.port]

    def is_reverted(self, transaction: Transaction) -> bool:
        """Return true if a later restore of the fence has reverted the transaction."""
        return transaction.generation is not None and _is_up_to(
            transaction.generation, self.restored_generation
        )

    def is_regular(self, transaction: Transaction) -> bool:
        """Return true if the transaction counts as part of a regular installation (not tampering).

        Each transaction before a regular installation counts as part of the installation too.
        """
        return (
            transaction.generation is not None
            and self.regular_generation is not None
            and _is_up_to(transaction.generation, self.regular_generation)
        )

    def generation(self) -> int:
        """Return the kernel's number of the present ruleset in the namespace."""
        with self._lock:
            try:
                return self._nftables.generation()
            except TimeoutError:
                self._reopen()
                raise

    def accept(self, generation: int) -> None:
        """Accept all changes that led to the ruleset with the number ``generation``.

        Accepted changes are not reverted. They count as a regular installation, not as tampering.
        """
        with self._lock:
            if _is_up_to(self.restored_generation, generation):
                self.restored_generation = self.regular_generation = generation

    def restore(self, statements: Sequence[Statement]) -> None:
        """Restore the fence: send ``statements`` in one transaction, which reverts earlier changes.

        The kernel refuses the transaction if another process changes the ruleset meanwhile. Then
        the transaction is sent again. After eight refusals, the transaction is sent once more, and
        the kernel is not asked to check for other changes.
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
        """Execute all statements in one transaction, as :meth:`Nftables.commit` does.

        Arguments and errors are the same. Before TimeoutError is raised, a new socket replaces the
        old one, because the late answer may still arrive there.
        """
        with self._lock:
            try:
                self._nftables.commit(statements, generation)
            except TimeoutError:
                self._reopen()
                raise

    def take_ownership(self) -> None:
        """Make our socket the exclusive owner of the fence's tables; set ``is_owner`` accordingly.

        Then no other socket can change the tables. Nothing happens if a table is missing. Raises
        PermissionError if another socket owns one of the tables.
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
                    ruleset_batch.ownership_statement(*table_id) for table_id in self.tables
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
        """Replace the socket after a timeout: the late answer may still arrive on the old one."""
        fresh = self.namespace.call(Nftables)
        self._nftables.close()
        self._nftables = fresh
        if self.is_owner:
            with contextlib.suppress(OSError):  # tried again after the next check
                self.take_ownership()


def _open_sockets() -> tuple[socket.socket, Nftables, int]:
    nftables = Nftables()
    try:
        # Read first, so that the notices cover the changes after it.
        generation = nftables.generation()
        return nfnetlink.subscribe(), nftables, generation
    except BaseException:
        nftables.close()
        raise


def _is_up_to(earlier: int, generation: int) -> bool:
    # The numbers wrap around at 2^32.
    return (generation - earlier) & 0xFFFFFFFF < 1 << 31
