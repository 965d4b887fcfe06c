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
from ocsf_nft.errors import OcsfNftError, SourceError
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
#: Pause before a socket is opened again that could not be.
_RETRY_SECONDS: Final = 1.0


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
        try:
            self._shared.unsubscribe(self)
        finally:
            os.close(self._event)

    def refresh(self) -> None:
        """Queue the notices that the kernel has sent until now.

        Raises OSError if they can't be read now.
        """
        self._shared.read()

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        """Return the next datagram and its sender, the kernel, as a netlink socket does.

        Raises BlockingIOError if there is none, and OSError with ENOBUFS if some were dropped.
        """
        if not self._datagrams:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            with contextlib.suppress(OSError):  # later, all subscribers get the error
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
        #: Held while the watching begins or ends, which waits for a turn. So no turn may take it.
        self._changing = threading.Lock()
        #: Whether the thread watches this object; changes only in the lock ``_changing``.
        self._is_watched = False
        #: Protects the values below. Taken after ``_changing``.
        self._lock = threading.Lock()
        self._subscribers: set[QueuedNotices] = set()
        #: Replaced only in a turn, or if nobody watches it. None while it can't be opened again.
        self._socket: socket.socket | None = None
        #: Datagrams of the transaction that is not complete yet, and the subscribers it concerns.
        self._datagrams: list[bytes] = []
        self._concerned: set[QueuedNotices] = set()

    def subscribe(self, tables: tuple[TableId, ...]) -> QueuedNotices:
        """Return a queue of the notices about ``tables``; raises SourceError, UnsupportedError."""
        found = QueuedNotices(self, tables)
        try:
            with self._changing:
                with self._lock:
                    self._subscribers.add(found)
                if not self._is_watched:
                    self._begin()
        except BaseException:
            found.close()
            raise
        return found

    def _begin(self) -> None:
        try:
            opened = _open()
        except OSError as error:
            raise SourceError(
                f"the guards on the host can't be watched: {error.strerror}"
            ) from error
        with self._lock:
            self._socket = opened
        try:
            self._thread.add(self)
        except BaseException:
            with self._lock:
                self._close()
            raise
        self._is_watched = True

    def unsubscribe(self, queue: QueuedNotices) -> None:
        """End a subscription."""
        with self._changing:
            with self._lock:
                self._subscribers.discard(queue)
                self._concerned.discard(queue)
                is_last = not self._subscribers
            if is_last and self._is_watched:
                self._thread.remove(self)
                self._is_watched = False
                with self._lock:
                    self._close()

    def awaited(self, _now: float) -> Collection[int]:
        """Return the descriptor of the socket."""
        return () if self._socket is None else (self._socket.fileno(),)

    def deadline(self, now: float) -> float | None:
        """Return when the socket is to be opened again; None if it is open."""
        return now + _RETRY_SECONDS if self._socket is None else None

    def turn(self, _ready: Collection[int]) -> bool:
        """Read the notices; open the socket again if it fails."""
        try:
            self._receive()
        except OSError:
            with self._lock:
                self._open_again()
        return True

    def read(self) -> None:
        """Read all notices that the kernel has sent; not in a turn of this object.

        If the socket fails, open it again. Raises OSError if that can't be done.
        """
        try:
            self._receive()
        except OSError:
            with self._changing:
                if self._is_watched:
                    self._thread.remove(self)
                    with self._lock:
                        self._open_again()
                    self._thread.add(self)
            self._receive()

    def _receive(self) -> None:
        with self._lock:
            if self._socket is None:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            while True:
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

    def _open_again(self) -> None:
        self._close()
        with contextlib.suppress(OSError, OcsfNftError):  # tried again at the deadline
            self._socket = _open()
            self._drop()  # the notices since the failure

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._datagrams, self._concerned = [], set()

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


def _open() -> socket.socket:
    return HOST.call(nfnetlink.subscribe)


def _key(table_id: TableId) -> tuple[int, bytes]:
    return nfnetlink.FAMILIES[table_id.family], table_id.name.encode() + b"\0"
