"""A namespace that tables of a fence are in: what is told of them, and the way to change them."""

from __future__ import annotations

import contextlib
import errno
import select
import threading
from typing import TYPE_CHECKING, Final

from ocsf_nft import nfnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence import ruleset_batch
from ocsf_nft.fence.ruleset_changes import Changes, Transaction
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ocsf_nft.fence.replace_keeping_counters import Place
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Statement

_RECEIVE_BYTES: Final = 1 << 16
#: In one reading, so that it ends.
_MOST_DATAGRAMS: Final = 1024
#: The end of a transaction follows its parts at once, in a datagram of its own.
_END_SECONDS: Final = 0.02
#: Where others change the ruleset all the time.
_TRIES: Final = 8
#: What stands for notices that were lost.
OVERRUN: Final = Transaction(
    changes="more changes were made at once than could be read, maybe to other tables",
)


class Post:
    """Sockets inside a namespace; all but making one raises OSError.

    One thread reads what is told; the fence may be changed by another one as well. ``covered`` is
    the number of a ruleset: what was told of that, or of an earlier one, has been put right; up to
    ``regular`` it was somebody's who had put the fence on record in the regular way.
    """

    def __init__(self, namespace: Namespace, places: tuple[Place, ...]) -> None:
        """Listen to what becomes of some tables.

        Raises SourceError, and what :meth:`Namespace.call` does.
        """
        self.namespace = namespace
        #: The namespace that the sockets are in; by the same name there may be another one now.
        self.identity = namespace.identity()
        self.owns = False
        self.regular: int | None = None
        self.places = places
        self._changes = Changes(places)
        #: Whoever changes something by the socket.
        self._hand = threading.RLock()
        try:
            self.notices, self._nftables, self.covered = namespace.call(_opened)
        except OSError as error:
            raise SourceError(
                f"the fence in {namespace} can't be watched: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Close the sockets."""
        self.notices.close()
        self._nftables.close()

    def read(self) -> list[Transaction]:
        """What has been told by now of what others did."""
        found: list[Transaction] = []
        waits = select.poll()
        waits.register(self.notices, select.POLLIN)
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram, sender = self.notices.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                if self._changes.is_open and waits.poll(_END_SECONDS * 1000):
                    continue
                found += self._changes.rest()
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(OVERRUN)
                continue
            if sender[0] == 0:  # others can send to it as well
                found += self._changes.read(memoryview(datagram))
        return [each for each in found if each.port != self._nftables.port]

    def has_put_right(self, transaction: Transaction) -> bool:
        """Whether it came before what has been put right."""
        return _is_by(transaction, self.covered)

    def was_regular(self, transaction: Transaction) -> bool:
        """Whether it came before a fence that was installed in the regular way was renewed."""
        return self.regular is not None and _is_by(transaction, self.regular)

    def mend(self, statements: Sequence[Statement]) -> None:
        """Put the fence back by a transaction, and so right whatever came before it."""
        with self._hand:
            for _ in range(_TRIES):
                before = self._nftables.generation()
                try:
                    self.commit(statements, before)
                except OSError as error:
                    if error.errno != errno.ERESTART:
                        raise
                else:
                    self.covered = before + 1
                    return
            # Somebody changes the ruleset without a pause: then it is put back once too often.
            self.commit(statements)

    def commit(self, statements: Sequence[Statement], generation: int | None = None) -> None:
        """See :meth:`Nftables.commit`."""
        with self._hand:
            try:
                self._nftables.commit(statements, generation)
            except TimeoutError:
                self._reopen()
                raise

    def own(self) -> None:
        """Hold the tables as its own, if all of them are there: no other socket changes them then.

        PermissionError where another one holds them.
        """
        with self._hand:
            self.owns = False
            # The last time whatever has changed since: who changes the ruleset without a pause is
            # not to keep it from being held.
            for is_last in (*[False] * _TRIES, True):
                before = self._nftables.generation()
                # Whoever says that one is his makes one that is not there.
                if any(self._nftables.table(*place) is None for place in self.places):
                    return
                owned = [ruleset_batch.owned(*place) for place in self.places]
                try:
                    self.commit(owned, None if is_last else before)
                except OSError as error:
                    if error.errno != errno.ERESTART:
                        raise
                else:
                    self.owns = True
                    return

    def _reopen(self) -> None:
        """Another socket: on this one the rest of an answer may be due."""
        fresh = self.namespace.call(Nftables)
        self._nftables.close()
        self._nftables = fresh
        if self.owns:
            with contextlib.suppress(OSError):  # after the next look it is tried again
                self.own()


def _opened() -> tuple[socket.socket, Nftables, int]:
    nftables = Nftables()
    try:
        # First: what comes after that is told.
        generation = nftables.generation()
        return nfnetlink.subscribe(), nftables, generation
    except BaseException:
        nftables.close()
        raise


def _is_by(transaction: Transaction, generation: int) -> bool:
    if transaction.generation is None:
        return False
    # The numbers begin anew at 2^32.
    return (generation - transaction.generation) & 0xFFFFFFFF < 1 << 31
