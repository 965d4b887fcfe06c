"""Talk to nf_tables over a socket that is kept open: ask, change, be told of changes.

Messages are those of ``include/uapi/linux/netfilter/nfnetlink.h``: netlink messages whose payload
begins with a family, a version and a resource id. All of it needs CAP_NET_ADMIN over the
socket's namespace, which is the one that it was opened in.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NFPROTO_INET: Final = 1
NFPROTO_NETDEV: Final = 5
#: The families that a fence has tables in.
FAMILIES: Final = {"inet": NFPROTO_INET, "netdev": NFPROTO_NETDEV}

SUBSYSTEM: Final = 10 << 8
NFNL_MSG_BATCH_BEGIN: Final = 16
NFNL_MSG_BATCH_END: Final = 17
_NFNL_BATCH_GENID: Final = 1
_NFT_MSG_GETTABLE: Final = 1
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_FLAGS: Final = 2
_NFTA_TABLE_USERDATA: Final = 6
NFT_TABLE_F_OWNER: Final = 0x2
NFT_TABLE_F_PERSIST: Final = 0x4
_NFT_MSG_GETGEN: Final = 16
_NFTA_GEN_ID: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
#: A transaction is one message to the kernel: some tens of thousands of rules, or exceptions.
_BATCH_BYTES: Final = 32 << 20
#: Not more: what is told of a transaction of a million rules needn't be read to its end.
_NOTICE_BYTES: Final = 1 << 20
_BATCH: Final = struct.pack("!BBH", 0, 0, 10)  # the resource id is the subsystem
_HEADER: Final = struct.Struct("!BBH")  # family, version, resource id
_ERROR: Final = struct.Struct("=i")
#: include/uapi/asm-generic/socket.h; Linux 5.14.
_SO_NETNS_COOKIE: Final = 71
_COOKIE: Final = struct.Struct("=Q")
#: The kernel fills no more than 32 KiB at once, and only for who takes that much.
_RECEIVE_BYTES: Final = 1 << 16
_TIMEOUT_SECONDS: Final = 5.0


class InterruptedDumpError(Exception):
    """The kernel says of a list that it told that it changed meanwhile."""


class Statement(NamedTuple):
    """One message of a transaction: its type in the subsystem, flags, header and attributes."""

    kind: int
    flags: int
    payload: bytes


class Table(NamedTuple):
    """What the kernel tells of a table.

    ``is_owned``: it is a socket's own, and changed by that socket alone. ``persists``: it is such
    as may be, and stands when that is closed (Linux 6.9).
    """

    is_owned: bool
    persists: bool
    userdata: bytes


class Nftables:
    """A socket to nf_tables in the network namespace of the thread that makes it.

    For one thread at a time. After an exception other than one that the kernel answered, or a list
    that was not read to its end, the rest of an answer may be on its way: close it and make another
    then. All of it raises OSError; TimeoutError when an answer takes 5 s, or when ``deadline``
    (``time.monotonic()``) has passed, so that an endless list ends.
    """

    def __init__(self) -> None:
        self.deadline = float("inf")
        self._sequence = 0
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        try:
            # To the kernel's port: nobody else can send to this socket then, nor fill its buffer,
            # which whoever has CAP_NET_ADMIN in the namespace otherwise could (af_netlink.c).
            self._socket.connect((0, 0))
            _have_room(self._socket, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _BATCH_BYTES)
            # Each statement that is refused is answered, and no answer may get lost.
            _have_room(self._socket, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _BATCH_BYTES)
            self._socket.settimeout(_TIMEOUT_SECONDS)
            self.cookie = self._read_cookie()
            #: What the kernel calls this socket where it tells of changes that came by it.
            self.port: int = self._socket.getsockname()[0]
            # nf_tables may be missing, or the privilege: better known at once.
            self.ask(_NFT_MSG_GETGEN, 0, b"")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the socket, once or more often."""
        self._socket.close()

    def ask(self, kind: int, family: int, attributes: bytes) -> dict[int, bytes]:
        """The attributes of the one thing that is asked for; raises FileNotFoundError as well."""
        self._send(kind, netlink.NLM_F_REQUEST, family, attributes)
        while True:
            for answer in self._answers():
                if answer.kind == netlink.NLMSG_ERROR:
                    _raise_for_error(answer.payload)
                return {
                    kind: bytes(value)
                    for kind, value in netlink.attributes(answer.payload[_HEADER.size :])
                }

    def dump(self, kind: int, family: int, attributes: bytes) -> Iterator[memoryview]:
        """The attributes of each message of a list, valid until the next is taken.

        Raises InterruptedDumpError after the last when the kernel says that something may be
        missing or told twice.
        """
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
        self._send(kind, flags, family, attributes)
        seen = 0
        while True:
            for answer in self._answers():
                seen |= answer.flags
                if answer.kind in {netlink.NLMSG_DONE, netlink.NLMSG_ERROR}:
                    _raise_for_error(answer.payload)
                    if seen & netlink.NLM_F_DUMP_INTR:
                        raise InterruptedDumpError
                    return
                yield answer.payload[_HEADER.size :]

    def generation(self) -> int:
        """The number of the ruleset that stands now; each transaction makes it one more."""
        return int.from_bytes(self.ask(_NFT_MSG_GETGEN, 0, b"")[_NFTA_GEN_ID], "big")

    def table(self, family: str, name: str) -> Table | None:
        """A table; None when there is none by that name."""
        named = netlink.attribute(_NFTA_TABLE_NAME, name.encode() + b"\0")
        try:
            found = self.ask(_NFT_MSG_GETTABLE, FAMILIES[family], named)
        except FileNotFoundError:
            return None
        flags = int.from_bytes(found.get(_NFTA_TABLE_FLAGS, b""), "big")
        return Table(
            is_owned=bool(flags & NFT_TABLE_F_OWNER),
            persists=bool(flags & NFT_TABLE_F_PERSIST),
            userdata=found.get(_NFTA_TABLE_USERDATA, b""),
        )

    def commit(self, statements: Sequence[Statement], generation: int | None = None) -> None:
        """Do all of the statements or none, in one transaction.

        Raises OSError with the kernel's word on the first that it refused; it is ERESTART where the
        ruleset is not that of ``generation``, so that the one that comes of it has the next number.
        """
        first = self._sequence + 1
        head = _BATCH
        if generation is not None:
            head += netlink.attribute(_NFNL_BATCH_GENID, struct.pack("!I", generation))
        messages = [netlink.message(NFNL_MSG_BATCH_BEGIN, netlink.NLM_F_REQUEST, head, first)]
        for number, (kind, flags, payload) in enumerate(statements, first + 1):
            # What is refused is told anyway, in order; the last is told to be done as well.
            wanted = netlink.NLM_F_ACK if number == first + len(statements) else 0
            asked = flags | netlink.NLM_F_REQUEST | wanted
            messages.append(netlink.message(SUBSYSTEM | kind, asked, payload, number))
        last = first + len(statements)
        end = netlink.message(NFNL_MSG_BATCH_END, netlink.NLM_F_REQUEST, _BATCH, last + 1)
        self._sequence = last + 1
        self._socket.send(b"".join((*messages, end)))
        refusal: OSError | None = None
        while True:
            length = self._socket.recv_into(self._buffer)
            for message in netlink.headed(self._buffer[:length]):
                if message.kind != netlink.NLMSG_ERROR or not first <= message.sequence <= last:
                    continue
                try:
                    _raise_for_error(message.payload)
                except OSError as error:
                    refusal = refusal or error
                if message.sequence == last or (refusal and message.sequence == first):
                    if refusal is not None:
                        raise refusal
                    return

    def _read_cookie(self) -> int:
        """The number that the kernel gives a namespace, and no other until it starts again."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        (cookie,) = _COOKIE.unpack(raw)
        return int(cookie)

    def _send(self, kind: int, flags: int, family: int, attributes: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        payload = _HEADER.pack(family, 0, 0) + attributes
        self._socket.send(netlink.message(SUBSYSTEM | kind, flags, payload, self._sequence))

    def _answers(self) -> Iterator[netlink.Message]:
        """What the next datagram has to say to the last question."""
        if time.monotonic() > self.deadline:
            raise TimeoutError("timed out")
        length = self._socket.recv_into(self._buffer)
        for message in netlink.headed(self._buffer[:length]):
            if message.sequence == self._sequence:
                yield message


def subscribe() -> socket.socket:
    """A non-blocking socket that is told of each change to the tables of the thread's namespace.

    Whoever has CAP_NET_ADMIN over the namespace can send to it as well: the kernel's port is 0.
    Raises OSError.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
    try:
        _have_room(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _NOTICE_BYTES)
        sock.bind((0, 0))  # a socket without a port is told nothing
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _have_room(sock: socket.socket, by_force: int, option: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, by_force, size)
    except PermissionError:  # in a user namespace: as much as everybody may have
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def _raise_for_error(payload: memoryview) -> None:
    if len(payload) >= _ERROR.size:
        netlink.raise_for_error(payload)
