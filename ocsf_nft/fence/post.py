"""A namespace that tables of a fence are in: what is told of them, and the way to change them."""

from __future__ import annotations

import contextlib
import errno
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import nfnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence import batch
from ocsf_nft.fence.changes import Changes, Transaction
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from ocsf_nft.fence.keeping import Place
    from ocsf_nft.netns import Namespace

_RECEIVE_BYTES: Final = 1 << 16
#: In one reading, so that it ends.
_MOST_DATAGRAMS: Final = 1024
#: The end of a transaction follows its parts at once, in a datagram of its own.
_END_SECONDS: Final = 0.02
#: What stands for notices that were lost.
OVERRUN: Final = Transaction(
    changes="more changes were made at once than could be read, maybe to other tables",
)


@dataclass(slots=True, kw_only=True)
class Post:
    """Sockets inside a namespace, for one thread; all but :meth:`at` raises OSError.

    What was told of the ruleset ``covered``, or an earlier one, has been seen to. ``owns``: it
    holds all of the tables as its own.
    """

    namespace: Namespace
    places: tuple[Place, ...]
    notices: socket.socket
    nftables: Nftables
    changes: Changes
    covered: int
    owns: bool = False

    @classmethod
    def at(cls, namespace: Namespace, places: tuple[Place, ...]) -> Self:
        """Listen to what becomes of some tables.

        Raises SourceError, and what :meth:`Namespace.call` does.
        """

        def opened() -> tuple[socket.socket, Nftables]:
            notices = nfnetlink.subscribe()
            try:
                return notices, Nftables()
            except BaseException:
                notices.close()
                raise

        try:
            notices, nftables = namespace.call(opened)
        except OSError as error:
            raise SourceError(
                f"the fence in {namespace} can't be watched: {error.strerror}"
            ) from error
        return cls(
            namespace=namespace,
            places=places,
            notices=notices,
            nftables=nftables,
            changes=Changes(places),
            covered=nftables.generation(),
        )

    def close(self) -> None:
        """Close the sockets."""
        self.notices.close()
        self.nftables.close()

    def reopen(self) -> None:
        """Another socket to change things by: after an error the rest of an answer may be due."""
        owned = self.owns
        self.release()
        if owned:
            with contextlib.suppress(OSError):  # another one is to try it again
                self.own()

    def own(self) -> None:
        """Hold the tables that are there as its own: no other socket can change them then.

        PermissionError where another one holds them.
        """
        there = [place for place in self.places if self.nftables.table(*place) is not None]
        if there:
            self.nftables.commit([batch.owned(*place) for place in there])
        self.owns = len(there) == len(self.places)

    def is_held(self) -> bool:
        """Whether any of the tables is a socket's own, this one's or another's."""
        found = (self.nftables.table(*place) for place in self.places)
        return any(table is not None and table.is_owned for table in found)

    def release(self) -> None:
        """Hold the tables no longer; they stay."""
        self.nftables.close()
        self.owns = False
        self.nftables = self.namespace.call(Nftables)

    def read(self) -> list[Transaction]:
        """What has been told by now."""
        found: list[Transaction] = []
        waits = select.poll()
        waits.register(self.notices, select.POLLIN)
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram, sender = self.notices.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                if self.changes.is_open and waits.poll(_END_SECONDS * 1000):
                    continue
                found += self.changes.rest()
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(OVERRUN)
                continue
            if sender[0] == 0:  # others can send to it as well
                found += self.changes.read(memoryview(datagram))
        return found

    def find_own(self, found: Iterable[Transaction]) -> None:
        """See to it that nothing is done about what we did, nor about what came before."""
        for each in found:
            if each.generation is not None and each.port == self.nftables.port:
                self.covered = each.generation

    def has_seen_to(self, transaction: Transaction) -> bool:
        """Whether it is our own, or came before what has been put right."""
        if transaction.port == self.nftables.port:
            return True
        if transaction.generation is None:
            return False
        # The numbers begin anew at 2^32.
        return (self.covered - transaction.generation) & 0xFFFFFFFF < 1 << 31
