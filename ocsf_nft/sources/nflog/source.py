"""NFLOG source: log records directly from the kernel, by netlink.

NFLOG is the fastest log transport. It is also the only one that needs no privilege outside the
sandbox's user namespace.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import struct
import time
from functools import cache
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.errors import SourceError
from ocsf_nft.record import Batch, Gap, Record, Reject
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.boot import boot_id, boottime_ns
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog import group_binding
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from ocsf_nft.netns import Namespace
    from ocsf_nft.sources.nflog.datagram import Datagram

#: A batch ends after this number of records or this time, so that other tasks of the event loop can
#: run.
_BATCH_RECORDS: Final = 1024
_BATCH_NS: Final = 10_000_000
#: Maximum time that the kernel holds a record back to collect more: a timer of 10 ms
#: (``group_binding.FLOOD``), which may be delayed.
_HELD_BACK_NS: Final = 200_000_000
#: Time without records after which an overrun is reported without a number.
_QUIET_S: Final = 0.15
#: Time without records after which the kernel has sent all of its buffered records.
_QUIET_SECONDS: Final = 0.2
_CALM_QUIET_SECONDS: Final = 0.02
#: The kernel's number of a record has 32 bits. So a gap of exactly 2**32 records is not detected.
_SEQUENCE_MODULUS: Final = 1 << 32
#: ``struct ifreq`` of netdevice(7): the name, then the index.
_REQUEST: Final = struct.Struct("@16sI20x")
_SIOCGIFNAME: Final = 0x8910
_MAX_NAMES: Final = 4096


class Nflog:
    """Source of the log records of one NFLOG group of one network namespace.

    The time of a record is the kernel's timestamp or, without a timestamp, the time of reading. On
    the output hook, the kernel sends no timestamp.
    """

    def __init__(self, namespace: Namespace, group: int) -> None:
        self._namespace = namespace
        self._group = group
        self._socket: socket.socket | None = None
        self._early: list[bytes] = []
        self._interface_names = InterfaceNames()
        self._adaptive = group_binding.AdaptiveBatching(time.monotonic_ns())
        #: Number of the next record, without the limit of 32 bits.
        self._next = 0
        self._identity = ""
        self._seen_ns = 0
        #: Last time without a record to read (CLOCK_BOOTTIME).
        self._empty_ns = 0
        self._overrun = False
        self._unnumbered = 0

    @property
    def quiet_seconds(self) -> float:
        """Return the time without a record after which all earlier records are read."""
        is_calm = self._adaptive.batching is group_binding.CALM
        return _CALM_QUIET_SECONDS if is_calm else _QUIET_SECONDS

    async def __aenter__(self) -> Self:
        """Bind a socket to the NFLOG group; blocks the event loop for about a millisecond.

        Raises AbsentError if the namespace does not exist. Raises SourceError if another program
        uses the group. Raises UnsupportedError if the kernel has no NFLOG, or if CAP_NET_ADMIN is
        missing.
        """
        # The nonce distinguishes the records of two bindings: both count from 0.
        binding = f"{self._namespace.identity()}:{self._group}:{secrets.token_hex(8)}"
        self._identity = f"{nflog_line.IDENTITY_START}{boot_id()}:{binding}"
        # The kernel logs no record to a group that is not bound yet.
        self._empty_ns = boottime_ns()
        self._socket, self._early = self._namespace.call(
            lambda: group_binding.bind(self._group, self._adaptive.batching)
        )
        self._seen_ns = time.time_ns()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the socket; the kernel then unbinds the group."""
        sock, self._socket = self._socket, None
        if sock is not None:
            # In a thread: the kernel closes the socket after the transaction of nftables that a
            # process in the namespace makes, which may take a minute.
            await asyncio.to_thread(sock.close)

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield batches of log records, in the kernel's order.

        Raises SourceError if the socket can't be read.
        """
        sock = self._socket
        if sock is None:
            raise SourceError("the NFLOG source is not open: enter its context first")
        while True:
            needs_timeout = self._overrun or self._adaptive.batching is group_binding.FLOOD
            has_data = bool(self._early) or await until_readable(
                sock.fileno(), _QUIET_S if needs_timeout else None
            )
            batch = self._drain(sock) if has_data else self._report_overrun()
            if self._adaptive.observe(len(batch.records), time.monotonic_ns()):
                self._set_batching(sock)
            if batch.records or batch.gaps or batch.rejected:
                yield batch

    def _set_batching(self, sock: socket.socket) -> None:
        message = group_binding.batching_message(self._group, self._adaptive.batching)
        try:
            sock.sendto(message, (0, 0))
        except OSError as error:
            raise _broken(error.errno) from error

    def _drain(self, sock: socket.socket) -> Batch:
        found: list[Record | Gap | Reject] = []
        since_ns = max(0, self._empty_ns - _HELD_BACK_NS)
        self._interface_names.refresh(sock)
        view = _datagram_buffer()
        end_ns = time.monotonic_ns() + _BATCH_NS
        while len(found) < _BATCH_RECORDS and time.monotonic_ns() < end_ns:
            if self._early:
                datagram, port = memoryview(self._early.pop(0)), 0
            else:
                asked_ns = boottime_ns()
                try:
                    size, (port, _groups) = sock.recvfrom_into(view)
                except BlockingIOError:
                    self._empty_ns = asked_ns
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise _broken(error.errno) from error
                    self._overrun = True
                    continue
                datagram = view[:size]
            if port == 0:
                found += self._read(datagram)
            else:
                found.append(_reject_forged(port, datagram))
        return Batch.of(found, since_ns=since_ns)

    def _read(self, datagram: memoryview) -> list[Record | Gap | Reject]:
        found: list[Record | Gap | Reject] = []
        now_ns = time.time_ns()
        for kind, payload in netlink.messages(datagram):
            if kind == group_binding.PACKET:
                logged = None
                try:
                    logged = nflog_datagram.decode(
                        payload, self._group, self._interface_names.name, now_ns
                    )
                    number = logged.sequence
                except MalformedError as error:
                    number = nflog_datagram.sequence(payload)
                    line = f"NFLOG payload={payload.hex()}"
                    found.append(Reject(kind="malformed", reason=str(error), line=line))
                # NFULA_SEQ shows exactly how many records the kernel dropped before this one.
                if number is not None and (dropped := self._dropped_before(number)):
                    found.append(self._gap(dropped, now_ns))
                if logged is not None:
                    found.append(self._record(logged))
            elif kind == netlink.NLMSG_ERROR:
                try:
                    netlink.raise_for_error(payload)
                except OSError as error:
                    raise _broken(error.errno) from error
        self._seen_ns = now_ns
        return found

    def _record(self, logged: Datagram) -> Record:
        if logged.sequence is not None:
            identity = f"{self._identity}:{self._next - 1}"
        else:
            # A record of the microseconds between the bind and the request for numbers.
            self._unnumbered += 1
            identity = f"{self._identity}:unnumbered-{self._unnumbered}"
        return nflog_datagram.record(
            logged,
            transport="nflog",
            identity=identity,
            log_source=f"nfnetlink_log:{self._group}",
            raw=nflog_line.render(logged, identity),
        )

    def _dropped_before(self, number: int) -> int:
        dropped = (number - self._next) % _SEQUENCE_MODULUS
        self._next += dropped + 1
        return dropped

    def _gap(self, dropped: int | None, now_ns: int) -> Gap:
        if dropped is None:
            reason = (
                "the NFLOG socket's buffer was full; "
                "the next record's gap will give the number of dropped records"
            )
        elif self._overrun:
            reason = "the NFLOG socket's buffer was full"
        else:
            reason = "the kernel dropped records"
        self._overrun = False
        return Gap(
            transport="nflog",
            reason=reason,
            dropped=dropped,
            since_ns=min(self._seen_ns, now_ns),
            until_ns=now_ns,
        )

    def _report_overrun(self) -> Batch:
        return Batch(gaps=(self._gap(None, time.time_ns()),) if self._overrun else ())


@cache
def _datagram_buffer() -> memoryview:
    """Return the buffer of all sources: each decodes a datagram before another one is read."""
    return memoryview(bytearray(group_binding.DATAGRAM_BYTES))


def _reject_forged(port: int, datagram: memoryview) -> Reject:
    return Reject(
        kind="forged",
        reason=f"a netlink message from port {port}, not from the kernel",
        line=datagram[:512].hex(),
    )


def _broken(code: int | None) -> SourceError:
    return SourceError(f"reading NFLOG failed: {os.strerror(code or 0)}")


class InterfaceNames:
    """Table of the interface names in the network namespace of a socket, by the interface's index.

    The kernel is asked once for each index after each :meth:`refresh`, since an interface can be
    renamed. A name that was asked for stays in the table after the interface is deleted, because
    records of its packets may still arrive. The table has only the newest 4096 names.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._socket: socket.socket | None = None
        self._asked: set[int] = set()

    def refresh(self, sock: socket.socket) -> None:
        """Ask the kernel again for each name that is needed from now on.

        ``sock`` is a socket of any kind in the network namespace. It must stay open.
        """
        self._socket = sock
        self._asked.clear()

    def name(self, index: int) -> str | None:
        """Return the name of the interface with this index, or None if the index is unknown."""
        if self._socket is not None and index not in self._asked:
            self._asked.add(index)
            self._ask(self._socket, index)
        return self._names.get(index)

    def _ask(self, sock: socket.socket, index: int) -> None:
        request = bytearray(_REQUEST.pack(b"", index))
        try:
            # It takes a microsecond, and needs no privilege and no socket of its own.
            fcntl.ioctl(sock, _SIOCGIFNAME, request)
        except OSError:  # ENODEV: the interface is deleted
            return
        name, _ = _REQUEST.unpack(request)
        self._names.pop(index, None)
        self._names[index] = name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        while len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]
