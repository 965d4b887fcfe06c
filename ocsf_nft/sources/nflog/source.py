"""The NFLOG source: records straight from the kernel by netlink.

The quickest transport, the one without a shared ring, and the only one that works without
privilege outside the sandbox's user namespace. Each record carries a sequence number
(NFULA_SEQ), so what was lost is known exactly as soon as a later record arrives.
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
from ocsf_nft.sources.nflog import group_binding as nflog_group
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.nflog import message as nflog_message
from ocsf_nft.sources.nflog.adaptive_batching import Pace
from ocsf_nft.sources.nflog.interface_names import Links
from ocsf_nft.sources.nflog.sequence import Sequence32
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.netns import Namespace

#: A batch ends when it holds this many records or took this long, so that the loop stays lively.
_BATCH_RECORDS: Final = 1024
_BATCH_NS: Final = 10_000_000
#: How long the kernel may keep a record back to gather others: by a timer of 10 ms
#: (``group.FLOOD``), which may be held up.
_KEPT_BACK_NS: Final = 200_000_000
#: How long nothing must come before an overflow is reported without its number.
_QUIET_S: Final = 0.15


class Nflog:
    """Reads one NFLOG group of one network namespace.

    A record's time is the kernel's where the hook gives one (input, forward, ingress); on the
    output hook it is the moment of reading, about 0.1 ms later while calm.
    """

    def __init__(self, namespace: Namespace, group: int) -> None:
        self._namespace = namespace
        self._group = group
        self._socket: socket.socket | None = None
        self._early: list[bytes] = []
        self._links = Links(namespace)
        self._sequence = Sequence32()
        self._pace = Pace(time.monotonic_ns())
        self._buffer = bytearray(nflog_group.DATAGRAM_BYTES)
        self._identity = ""
        self._seen_ns = 0
        #: When there was nothing to be read (CLOCK_BOOTTIME).
        self._empty_ns = 0
        self._overrun = False
        self._unnumbered = 0

    async def __aenter__(self) -> Self:
        """Bind the group.

        Raises AbsentError when there is no such namespace, UnsupportedError when the kernel has no
        NFLOG or the privilege is missing, SourceError when somebody else holds the group. Takes
        about a millisecond, in which the event loop waits.
        """
        # The nonce keeps the records of two bindings apart: both number theirs from 0.
        binding = f"{self._namespace.identity()}:{self._group}:{secrets.token_hex(8)}"
        self._identity = f"{nflog_line.IDENTITY_START}{boot_id()}:{binding}"
        # Nothing was logged to it before it is bound.
        self._empty_ns = boottime_ns()
        try:
            self._links.open()
            bound = self._namespace.call(lambda: nflog_group.bind(self._group, self._pace.batching))
        except BaseException:
            self._links.close()
            raise
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
        """Let the group go: the kernel unbinds it with the socket."""
        self._links.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def batches(self) -> AsyncIterator[Batch]:
        """What the kernel refused, in its order; raises SourceError when it can't go on."""
        sock = self._socket
        if sock is None:
            raise SourceError("the NFLOG source is not open: enter its context first")
        while True:
            watching = self._overrun or self._pace.batching is nflog_group.FLOOD
            came = bool(self._early) or await until_readable(
                sock.fileno(), _QUIET_S if watching else None
            )
            batch = self._drain(sock) if came else self._after_quiet()
            if self._pace.observe(len(batch.records), time.monotonic_ns()):
                _set_batching(sock, self._group, self._pace)
            if batch.records or batch.gaps or batch.rejects:
                yield batch

    def _drain(self, sock: socket.socket) -> Batch:
        records: list[Record] = []
        gaps: list[Gap] = []
        rejects: list[Reject] = []
        since_ns = max(0, self._empty_ns - _KEPT_BACK_NS)
        self._links.refresh()
        view = memoryview(self._buffer)
        end_ns = time.monotonic_ns() + _BATCH_NS
        while len(records) + len(rejects) < _BATCH_RECORDS and time.monotonic_ns() < end_ns:
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
                self._read(datagram, records, gaps, rejects)
            else:
                rejects.append(_forged(port, datagram))
        return Batch(
            records=tuple(records), gaps=tuple(gaps), rejects=tuple(rejects), since_ns=since_ns
        )

    def _read(
        self,
        datagram: memoryview,
        records: list[Record],
        gaps: list[Gap],
        rejects: list[Reject],
    ) -> None:
        now_ns = time.time_ns()
        log_source = f"nfnetlink_log:{self._group}"
        for kind, payload in netlink.messages(datagram):
            if kind == nflog_group.PACKET:
                found = nflog_message.read(
                    payload,
                    group=self._group,
                    interface_name=self._links.name,
                    identity=self._identify,
                    received_ns=now_ns,
                    log_source=log_source,
                )
                if isinstance(found, Record):
                    number = found.origin.sequence
                    records.append(found)
                else:
                    number = nflog_message.sequence(payload)
                    rejects.append(found)
                if number is not None and (lost := self._sequence.lost_before(number)):
                    gaps.append(self._gap(lost, now_ns))
            elif kind == netlink.NLMSG_ERROR:
                try:
                    netlink.raise_for_error(payload)
                except OSError as error:
                    raise _broken(error.errno) from error
        self._seen_ns = now_ns

    def _identify(self, number: int | None) -> str:
        if number is not None:
            return f"{self._identity}:{self._sequence.extended(number)}"
        # Records in the microseconds between binding and asking for numbers.
        self._unnumbered += 1
        return f"{self._identity}:unnumbered-{self._unnumbered}"

    def _gap(self, lost: int, now_ns: int) -> Gap:
        reason = (
            "the NFLOG socket's buffer was full" if self._overrun else "the kernel dropped records"
        )
        self._overrun = False
        return Gap(
            transport="nflog",
            reason=reason,
            lost=lost,
            since_ns=min(self._seen_ns, now_ns),
            until_ns=now_ns,
        )

    def _after_quiet(self) -> Batch:
        """Say that an overflow lost the last records there were: no later one tells how many."""
        if not self._overrun:
            return Batch()
        self._overrun = False
        now_ns = time.time_ns()
        reason = (
            "the NFLOG socket's buffer was full; how many records that lost, "
            "the next record's gap will tell"
        )
        return Batch(
            gaps=(
                Gap(
                    transport="nflog",
                    reason=reason,
                    lost=None,
                    since_ns=min(self._seen_ns, now_ns),
                    until_ns=now_ns,
                ),
            )
        )


def _set_batching(sock: socket.socket, group: int, pace: Pace) -> None:
    try:
        sock.sendto(nflog_group.batching_message(group, pace.batching), (0, 0))
    except OSError as error:
        raise _broken(error.errno) from error


def _forged(port: int, datagram: memoryview) -> Reject:
    return Reject(
        kind="forged",
        reason=f"a netlink message from port {port}, not from the kernel",
        line=datagram[:512].hex(),
    )


def _broken(code: int | None) -> SourceError:
    return SourceError(f"reading NFLOG failed: {os.strerror(code or 0)}")
