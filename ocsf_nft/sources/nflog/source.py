"""NFLOG source: log records directly from the kernel, by netlink.

NFLOG is the fastest log transport. It is also the only one that needs no privilege outside the
sandbox's user namespace.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.errors import SourceError
from ocsf_nft.record import Batch, Gap, Record, Reject
from ocsf_nft.sources.boot_clock import boottime_ns
from ocsf_nft.sources.boot_id import boot_id
from ocsf_nft.sources.nflog import group_binding
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.nflog import message as nflog_message
from ocsf_nft.sources.nflog.adaptive_batching import AdaptiveBatching
from ocsf_nft.sources.nflog.interface_names import InterfaceNames
from ocsf_nft.sources.nflog.sequence import Sequence32
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.netns import Namespace

#: A batch ends after this number of records or this time, so that other tasks of the event loop can
#: run.
_BATCH_RECORDS: Final = 1024
_BATCH_NS: Final = 10_000_000
#: Maximum time that the kernel holds a record back to collect more: a timer of 10 ms
#: (``group_binding.FLOOD``), which may be delayed.
_HELD_BACK_NS: Final = 200_000_000
#: Time without records after which an overrun is reported without a number.
_QUIET_S: Final = 0.15


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
        self._sequence = Sequence32()
        self._adaptive = AdaptiveBatching(time.monotonic_ns())
        self._identity = ""
        self._seen_ns = 0
        #: Last time without a record to read (CLOCK_BOOTTIME).
        self._empty_ns = 0
        self._overrun = False
        self._unnumbered = 0

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
        bound = self._namespace.call(
            lambda: group_binding.bind(self._group, self._adaptive.batching)
        )
        self._socket = bound.socket
        self._early = list(bound.early)
        self._seen_ns = time.time_ns()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the socket; the kernel then unbinds the group."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

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
                _set_batching(sock, self._group, self._adaptive)
            if batch.records or batch.gaps or batch.rejected:
                yield batch

    def _drain(self, sock: socket.socket) -> Batch:
        records: list[Record] = []
        gaps: list[Gap] = []
        rejected: list[Reject] = []
        since_ns = max(0, self._empty_ns - _HELD_BACK_NS)
        self._interface_names.refresh(sock)
        # Not for the life of the source: a host may have a thousand of them.
        view = memoryview(bytearray(group_binding.DATAGRAM_BYTES))
        end_ns = time.monotonic_ns() + _BATCH_NS
        while len(records) + len(rejected) < _BATCH_RECORDS and time.monotonic_ns() < end_ns:
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
                self._read(datagram, records, gaps, rejected)
            else:
                rejected.append(_reject_forged(port, datagram))
        return Batch(
            records=tuple(records), gaps=tuple(gaps), rejected=tuple(rejected), since_ns=since_ns
        )

    def _read(
        self,
        datagram: memoryview,
        records: list[Record],
        gaps: list[Gap],
        rejected: list[Reject],
    ) -> None:
        now_ns = time.time_ns()
        log_source = f"nfnetlink_log:{self._group}"
        for kind, payload in netlink.messages(datagram):
            if kind == group_binding.PACKET:
                found = nflog_message.read(
                    payload,
                    group=self._group,
                    interface_name=self._interface_names.name,
                    identity=self._identify,
                    received_ns=now_ns,
                    log_source=log_source,
                )
                if isinstance(found, Record):
                    number = found.origin.sequence
                    records.append(found)
                else:
                    number = nflog_message.sequence(payload)
                    rejected.append(found)
                # NFULA_SEQ shows exactly how many records the kernel dropped before this one.
                if number is not None and (dropped := self._sequence.dropped_before(number)):
                    gaps.append(self._gap(dropped, now_ns))
            elif kind == netlink.NLMSG_ERROR:
                try:
                    netlink.raise_for_error(payload)
                except OSError as error:
                    raise _broken(error.errno) from error
        self._seen_ns = now_ns

    def _identify(self, number: int | None) -> str:
        if number is not None:
            return f"{self._identity}:{self._sequence.extended(number)}"
        # A record of the microseconds between the bind and the request for numbers.
        self._unnumbered += 1
        return f"{self._identity}:unnumbered-{self._unnumbered}"

    def _gap(self, dropped: int, now_ns: int) -> Gap:
        reason = (
            "the NFLOG socket's buffer was full" if self._overrun else "the kernel dropped records"
        )
        self._overrun = False
        return Gap(
            transport="nflog",
            reason=reason,
            dropped=dropped,
            since_ns=min(self._seen_ns, now_ns),
            until_ns=now_ns,
        )

    def _report_overrun(self) -> Batch:
        if not self._overrun:
            return Batch()
        self._overrun = False
        now_ns = time.time_ns()
        reason = (
            "the NFLOG socket's buffer was full; "
            "the next record's gap will give the number of dropped records"
        )
        return Batch(
            gaps=(
                Gap(
                    transport="nflog",
                    reason=reason,
                    dropped=None,
                    since_ns=min(self._seen_ns, now_ns),
                    until_ns=now_ns,
                ),
            )
        )


def _set_batching(sock: socket.socket, group: int, adaptive: AdaptiveBatching) -> None:
    try:
        sock.sendto(group_binding.batching_message(group, adaptive.batching), (0, 0))
    except OSError as error:
        raise _broken(error.errno) from error


def _reject_forged(port: int, datagram: memoryview) -> Reject:
    return Reject(
        kind="forged",
        reason=f"a netlink message from port {port}, not from the kernel",
        line=datagram[:512].hex(),
    )


def _broken(code: int | None) -> SourceError:
    return SourceError(f"reading NFLOG failed: {os.strerror(code or 0)}")
