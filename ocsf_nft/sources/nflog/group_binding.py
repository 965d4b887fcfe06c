"""Binding of a socket to an NFLOG group, and the batching of the group's log records.

With few records, a low latency is preferred. In a flood of records, a high throughput is preferred.
Messages and attributes are defined in include/uapi/linux/netfilter/nfnetlink_log.h. The kernel
processes the messages in net/netfilter/nfnetlink_log.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ocsf_nft import netlink
from ocsf_nft.errors import SourceError, UnsupportedError

_NFNL_SUBSYS_ULOG: Final = 4
PACKET: Final = _NFNL_SUBSYS_ULOG << 8  # NFULNL_MSG_PACKET
_CONFIG: Final = PACKET | 1  # NFULNL_MSG_CONFIG
#: No message of the subsystem. The kernel checks CAP_NET_ADMIN first (net/netfilter/nfnetlink.c).
_UNKNOWN: Final = PACKET | 0xFF

_NFULA_CFG_CMD: Final = 1
_NFULA_CFG_MODE: Final = 2
_NFULA_CFG_NLBUFSIZ: Final = 3
_NFULA_CFG_TIMEOUT: Final = 4
_NFULA_CFG_QTHRESH: Final = 5
_NFULA_CFG_FLAGS: Final = 6
_NFULNL_CFG_CMD_BIND: Final = b"\x01"
_NFULNL_COPY_PACKET: Final = 2
_NFULNL_CFG_F_SEQ: Final = 1

#: Maximum number of bytes that the kernel copies of a packet. The rule that logs the packet may
#: limit it further (``snaplen``), and does except for DNS: the kernel uses the smaller number.
COPY_BYTES: Final = 512
#: The kernel's limit of nlbufsiz (NFULNL_NLBUFSIZ_MAX), and so the longest datagram.
DATAGRAM_BYTES: Final = 1 << 17
_RECEIVE_BUFFER_BYTES: Final = 16 << 20
_GROUPS_TABLE: Final = "/proc/thread-self/net/netfilter/nfnetlink_log"


class GroupTakenError(SourceError):
    """NFLOG group that another program holds.

    ``port_id`` is the netlink port of its socket: often its process id, but it can choose it. It is
    None if this process can't read the kernel's table of groups.
    """

    def __init__(self, group: int, port_id: int | None) -> None:
        super().__init__(
            f"another program holds NFLOG group {group}: stop it, or choose another group"
        )
        self.group = group
        self.port_id = port_id


@dataclass(frozen=True, slots=True)
class Batching:
    """Settings by which the kernel puts several log records into one datagram.

    The kernel sends the datagram when it has ``threshold`` records or ``buffer_bytes`` bytes. At
    the latest, the datagram is sent ``timeout_cs`` hundredths of a second after its first record.
    """

    threshold: int
    buffer_bytes: int
    timeout_cs: int


#: One datagram per record. The kernel allocates buffer_bytes for each, so the buffer is small.
CALM: Final = Batching(threshold=1, buffer_bytes=4096, timeout_cs=1)
#: Settings with which the socket's buffer holds the most records (258,000 in 16 MB). The kernel
#: sends a datagram when its 16 KB slab is full: buffer_bytes and the skb's own 320 bytes fill it.
FLOOD: Final = Batching(threshold=256, buffer_bytes=16064, timeout_cs=1)
#: A flood begins at 400 records within 0.1 s (4,000/s). It ends below 1,000 within a second.
_RISE_RECORDS: Final = 400
_RISE_NS: Final = 100_000_000
_FALL_RECORDS: Final = 1_000
_FALL_NS: Final = 1_000_000_000


class AdaptiveBatching:
    """Choice between two kernel settings for NFLOG batching, by the rate of log records.

    ``batching`` is the present setting: CALM at the start and for few records, otherwise FLOOD.
    """

    __slots__ = ("_count", "_since_ns", "batching")

    def __init__(self, now_ns: int) -> None:
        self.batching: Batching = CALM
        self._since_ns = now_ns
        self._count = 0

    def observe(self, records: int, now_ns: int) -> bool:
        """Count new log records, and update ``batching``; return true if ``batching`` has changed.

        ``records`` is the number of log records since the last call. ``now_ns`` is the current time
        of a monotonic clock.
        """
        elapsed = now_ns - self._since_ns
        if self.batching is FLOOD:
            self._count += records
            if elapsed < _FALL_NS:
                return False
            ended = self._count < _FALL_RECORDS
            self._begin(CALM if ended else FLOOD, now_ns)
            return ended
        if elapsed > _RISE_NS:
            self._begin(CALM, now_ns)
        self._count += records
        if self._count < _RISE_RECORDS:
            return False
        self._begin(FLOOD, now_ns)
        return True

    def _begin(self, batching: Batching, now_ns: int) -> None:
        self.batching = batching
        self._since_ns = now_ns
        self._count = 0


def batching_message(group: int, batching: Batching, *, flags: int = 0, more: bytes = b"") -> bytes:
    """Build the netlink message that sets how the kernel batches the records of an NFLOG group.

    ``flags`` are set in the header, in addition to NLM_F_REQUEST. ``more`` has encoded netlink
    attributes, which come before the attributes of ``batching``.
    """
    return netlink.message(
        _CONFIG,
        netlink.NLM_F_REQUEST | flags,
        struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
        + more
        + netlink.attribute(_NFULA_CFG_NLBUFSIZ, struct.pack(">I", batching.buffer_bytes))
        + netlink.attribute(_NFULA_CFG_QTHRESH, struct.pack(">I", batching.threshold))
        + netlink.attribute(_NFULA_CFG_TIMEOUT, struct.pack(">I", batching.timeout_cs)),
    )


def bind(group: int, batching: Batching) -> tuple[socket.socket, list[bytes]]:
    """Bind a new socket to an NFLOG group in the calling thread's network namespace.

    Return the non-blocking socket, which receives the group's log records, and the datagrams that
    arrived before the kernel acknowledged the binding.

    Raises GroupTakenError if another program holds the group. Raises UnsupportedError if the kernel
    has no NFLOG, or if CAP_NET_ADMIN is missing. Raises SourceError for any other failure.
    """
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
    except OSError as error:
        raise _error_for(error, group) from error
    try:
        # Connected to the kernel's port, so that no other process can send to this socket or fill
        # its buffer. Otherwise a process with CAP_NET_ADMIN in the namespace could (af_netlink.c).
        sock.connect((0, 0))
        netlink.set_buffer_size(sock, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        sock.settimeout(5.0)
        early = _configure(sock, group, batching)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _error_for(error, group) from error
    return sock, early


def _configure(sock: socket.socket, group: int, batching: Batching) -> list[bytes]:
    command = (
        netlink.attribute(_NFULA_CFG_CMD, _NFULNL_CFG_CMD_BIND)
        + netlink.attribute(_NFULA_CFG_MODE, struct.pack(">IBx", COPY_BYTES, _NFULNL_COPY_PACKET))
        # The first log record after the binding has sequence number 0.
        + netlink.attribute(_NFULA_CFG_FLAGS, struct.pack(">H", _NFULNL_CFG_F_SEQ))
    )
    message = batching_message(group, batching, flags=netlink.NLM_F_ACK, more=command)
    sock.sendto(message, (0, 0))
    early: list[bytes] = []
    while True:
        datagram, sender = sock.recvfrom(DATAGRAM_BYTES)
        if sender[0] != 0:
            continue
        for kind, body in netlink.messages(memoryview(datagram)):
            if kind == netlink.NLMSG_ERROR:
                netlink.raise_for_error(body)
                return early
        # The acknowledged message also binds the group, so records may arrive before the answer.
        early.append(datagram)


def _error_for(error: OSError, group: int) -> SourceError | UnsupportedError:
    # The kernel gives the same error for a group of another socket, and without CAP_NET_ADMIN.
    if error.errno == errno.EPERM:
        if _answer(_UNKNOWN, group) == errno.EINVAL:
            return GroupTakenError(group, _holders().get(group))
        return UnsupportedError(
            f"binding NFLOG group {group} is not permitted: "
            "it needs CAP_NET_ADMIN in the network namespace"
        )
    # An nfnetlink without the subsystem answers EINVAL (net/netfilter/nfnetlink.c).
    if error.errno in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP}:
        return UnsupportedError(
            "this kernel has no NFLOG: load the module nfnetlink_log, or read the kernel log"
        )
    return SourceError(
        f"binding NFLOG group {group} failed: {error.strerror or type(error).__name__}"
    )


def is_held(group: int) -> bool:
    """Return True if a socket holds an NFLOG group of the calling thread's network namespace.

    Without CAP_NET_ADMIN in the namespace, every group counts as held.
    """
    # A change of no setting. For a group without a holder, the kernel answers ENODEV.
    return _answer(_CONFIG, group) == errno.EPERM


def _answer(kind: int, group: int) -> int | None:
    """Return the kernel's error number for a message about a group; None without one."""
    payload = struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
    try:
        netlink.request(netlink.NETLINK_NETFILTER, kind, payload)
    except OSError as error:
        return error.errno
    return None


def _holders() -> dict[int, int]:
    """Return the netlink ports that hold the NFLOG groups of the calling thread's namespace.

    Return an empty dict if they can't be read. The table's owner is root of the user namespace that
    owns the network namespace. Other users need CAP_DAC_OVERRIDE.
    """
    try:
        lines = Path(_GROUPS_TABLE).read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {int(row[0]): int(row[1]) for row in rows if row}
