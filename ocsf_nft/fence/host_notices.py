"""Notices about the host's nftables ruleset, read once for the guards of all sandboxes.

Each sandbox has a guard in the same namespace. With a socket for each of them, a change of one
guard would be read and decoded as often as there are guards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from ocsf_nft.fence.guard_thread import GuardThread
    from ocsf_nft.fence.spec import TableId

_RECEIVE_BYTES: Final = 1 << 16
#: Datagrams of a transaction, and of all that one reader has not read. More count as dropped.
_MAX_DATAGRAMS: Final = 4096
_HEADER_BYTES: Final = 4  # of nfgenmsg
_NEWGEN: Final = 15  # include/uapi/linux/netfilter/nf_tables.h
_TABLE_NAME: Final = 1  # attribute of all kinds of messages alike
_KERNEL: Final = (0, 0)
_PAUSE_SECONDS: Final = 0.002


class QueuedNotices:
    """Notices about some tables, in place of a socket: :meth:`recvfrom` returns the next datagram.

    Only complete transactions are in the queue.
    """

    def __init__(self, shared: HostNotices, tables: tuple[TableId, ...]) -> None:
        #: Number of transactions that concern the tables, or that were dropped and may do so.
        self.transactions = 0
        self.keys: Final = frozenset(map(_key, tables))
        self._shared = shared
        self._datagrams: deque[bytes | None] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return a descriptor that is readable if there are datagrams."""
        return self._event

    def close(self) -> None:
        """End the subscription."""
        self._shared.unsubscribe(self)
        os.close(self._event)

    def refresh(self) -> None:
        """Queue the notices that the kernel has sent until now; raises OSError."""
        self._shared.read()

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        """Return the next datagram and its sender, the kernel, as a netlink socket does.

        Raises BlockingIOError if there is none, and OSError with ENOBUFS if some were dropped.
        """
        if not self._datagrams:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            self._shared.read()
        try:
            found = self._datagrams.popleft()
        except IndexError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        if found is None:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return found, _KERNEL

    def put(self, datagrams: Collection[bytes | None]) -> None:
        """Queue the datagrams of a transaction; None stands for dropped ones."""
        self.transactions += 1
        if len(self._datagrams) + len(datagrams) > _MAX_DATAGRAMS:
            self._datagrams.clear()
            datagrams = [None]
        self._datagrams += datagrams
        os.eventfd_write(self._event, 1)


class HostNotices:
    """Reader of the notices about the host's ruleset, which gives each transaction to its tables.

    While it has subscribers, ``thread`` watches it.
    """

    pause_seconds: float = _PAUSE_SECONDS

    def __init__(self, thread: GuardThread) -> None:
        self._thread = thread
        self._lock = threading.Lock()
        self._subscribers: set[QueuedNotices] = set()
        self._socket: socket.socket | None = None
        #: Datagrams of the transaction that is not complete yet, and the subscribers it concerns.
        self._datagrams: list[bytes] = []
        self._concerned: set[QueuedNotices] = set()

    def subscribe(self, tables: tuple[TableId, ...]) -> QueuedNotices:
        """Return a queue of the notices about ``tables``; raises SourceError."""
        with self._lock:
            found, is_first = QueuedNotices(self, tables), not self._subscribers
            if is_first:
                try:
                    self._socket = HOST.call(nfnetlink.subscribe)
                except OSError as error:
                    raise SourceError(
                        f"the guards on the host can't be watched: {error.strerror}"
                    ) from error
            self._subscribers.add(found)
        if is_first:
            self._thread.add(self)
        return found

    def unsubscribe(self, queue: QueuedNotices) -> None:
        """End a subscription."""
        with self._lock:
            self._subscribers.discard(queue)
            self._concerned.discard(queue)
            is_last = not self._subscribers and self._socket is not None
        if is_last:
            self._thread.remove(self)
        with self._lock:
            if self._subscribers:  # one has come meanwhile
                if is_last:
                    self._thread.add(self)
            elif self._socket is not None:
                self._socket.close()
                self._socket = None

    def awaited(self, _now: float) -> Collection[int]:
        """Return the descriptor of the socket."""
        return () if self._socket is None else (self._socket.fileno(),)

    def deadline(self, _now: float) -> None:
        """Return None: there is nothing to do without a notice."""

    def turn(self, _ready: Collection[int]) -> bool:
        """Read the notices; return False if they can't be read any more."""
        try:
            self.read()
        except OSError:
            with self._lock:
                self._drop()
            return False
        return True

    def read(self) -> None:
        """Read all notices that the kernel has sent; raises OSError if the socket fails."""
        with self._lock:
            while self._socket is not None:
                try:
                    datagram, sender = self._socket.recvfrom(_RECEIVE_BYTES)
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._drop()
                    continue
                if sender[0] == 0:  # other processes can send to this socket too
                    self._take(datagram)

    def _take(self, datagram: bytes) -> None:
        self._datagrams.append(datagram)
        if len(self._datagrams) > _MAX_DATAGRAMS:
            self._drop()
            return
        is_complete = False
        keys = set()
        for kind, body in netlink.messages(memoryview(datagram)):
            is_complete |= kind - nfnetlink.SUBSYSTEM == _NEWGEN
            if len(body) > _HEADER_BYTES:
                name = next(netlink.attributes(body[_HEADER_BYTES:]), None)
                if name is not None and name[0] == _TABLE_NAME:
                    keys.add((body[0], bytes(name[1])))
        self._concerned |= {each for each in self._subscribers if not keys.isdisjoint(each.keys)}
        if is_complete:
            for each in self._concerned:
                each.put(self._datagrams)
            self._datagrams, self._concerned = [], set()

    def _drop(self) -> None:
        """Note for all subscribers that notices were dropped."""
        self._datagrams, self._concerned = [], set()
        for each in self._subscribers:
            each.put([None])


def _key(table_id: TableId) -> tuple[int, bytes]:
    return nfnetlink.FAMILIES[table_id.family], table_id.name.encode() + b"\0"
