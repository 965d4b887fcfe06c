"""Ask nf_tables over a socket that is kept open: one thing, or a list of things.

Messages are those of ``include/uapi/linux/netfilter/nfnetlink.h``: netlink messages whose payload
begins with a family, a version and a resource id. Asking needs CAP_NET_ADMIN over the socket's
namespace, which is the one that it was opened in.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

NFPROTO_INET: Final = 1
NFPROTO_NETDEV: Final = 5

_SUBSYSTEM_NFTABLES: Final = 10 << 8
_NFT_MSG_GETGEN: Final = 16
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
            self._socket.settimeout(_TIMEOUT_SECONDS)
            self.cookie = self._read_cookie()
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

    def _read_cookie(self) -> int:
        """The number that the kernel gives a namespace, and no other until it starts again."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        (cookie,) = _COOKIE.unpack(raw)
        return int(cookie)

    def _send(self, kind: int, flags: int, family: int, attributes: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        payload = _HEADER.pack(family, 0, 0) + attributes
        self._socket.send(
            netlink.message(_SUBSYSTEM_NFTABLES | kind, flags, payload, self._sequence)
        )

    def _answers(self) -> Iterator[netlink.Message]:
        """What the next datagram has to say to the last question."""
        if time.monotonic() > self.deadline:
            raise TimeoutError("timed out")
        length = self._socket.recv_into(self._buffer)
        for message in netlink.headed(self._buffer[:length]):
            if message.sequence == self._sequence:
                yield message


def _raise_for_error(payload: memoryview) -> None:
    if len(payload) >= _ERROR.size:
        netlink.raise_for_error(payload)
