"""Netlink messages: encoding, decoding, and a request that waits for the kernel's reply.

A message has a header and a payload: a fixed part, and then attributes.
``include/uapi/linux/netlink.h`` describes the format.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300

_NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

#: Length, type, flags, sequence and port id, in native byte order.
_HEADER: Final = struct.Struct("=IHHII")
#: Length and type; the value follows. Each message and each attribute is padded to 4 bytes.
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
#: The kernel fills at most 32 KiB at once, and only if the receive buffer is that large.
_RECEIVE_BYTES: Final = 1 << 17
_TIMEOUT_SECONDS: Final = 5.0
#: Limit of the kernel's error numbers (include/linux/err.h).
_MAX_ERRNO: Final = 4096
# include/uapi/asm-generic/socket.h
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_NETNS_COOKIE: Final = 71  # Linux 5.14


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one netlink attribute of type ``kind``, padded to 4 bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """Encode one netlink message of type ``kind``: the header and the payload."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def attributes(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and value of each netlink attribute; stop at a malformed attribute.

    The flags in the type (nested, byte order) are removed.
    """
    offset, end = 0, len(payload)
    while offset + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < _ATTRIBUTE.size or offset + length > end:
            return
        yield kind & _TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + length]
        offset += length + (-length % 4)


def messages(datagram: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of each netlink message in a datagram; stop at a malformed message."""
    offset, end = 0, len(datagram)
    while offset + _HEADER.size <= end:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > end:
            return
        yield kind, datagram[offset + _HEADER.size : offset + length]
        offset += length + (-length % 4)


class Message(NamedTuple):
    """Netlink message: its payload, and the relevant fields of its header.

    ``kind`` is the message type. ``sequence`` is the sequence number of the request that the
    message answers. ``port`` is the netlink port of the socket that caused the message.
    """

    kind: int
    flags: int
    sequence: int
    port: int
    payload: memoryview


def messages_with_headers(datagram: memoryview) -> Iterator[Message]:
    """Yield the netlink messages in a datagram, with their headers; stop at a malformed message."""
    offset, end = 0, len(datagram)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > end:
            return
        yield Message(
            kind, flags, sequence, port, datagram[offset + _HEADER.size : offset + length]
        )
        offset += length + (-length % 4)


def error_of(payload: memoryview) -> OSError | None:
    """Return the error in the payload of an NLMSG_ERROR or NLMSG_DONE message.

    Return None for the code 0, which is an acknowledgement, and for a payload without a code.
    """
    code = int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if code <= -_MAX_ERRNO:
        return OSError(errno.EBADMSG, f"the kernel's answer has the invalid error {code}")
    return OSError(-code, os.strerror(-code)) if code else None


def raise_for_error(payload: memoryview) -> None:
    """Raise OSError if there is an error in the payload of an NLMSG_ERROR or NLMSG_DONE message."""
    error = error_of(payload)
    if error is not None:
        raise error


def subscribe(protocol: int, groups: int, receive_bytes: int | None = None) -> socket.socket:
    """Return a non-blocking socket that receives the notices of multicast groups.

    The notices are those of the calling thread's network namespace. ``groups`` has one bit for each
    group. ``receive_bytes`` is the size of the buffer, by default that of the system. The caller
    must ignore messages from senders other than netlink port 0 (the kernel), because other
    processes can send too. Raises OSError.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        if receive_bytes is not None:
            set_buffer_size(sock, socket.SO_RCVBUF, receive_bytes)
        sock.bind((0, groups))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def set_buffer_size(sock: socket.socket, option: int, size: int) -> None:
    """Set the size in bytes of a socket's buffer: ``SO_SNDBUF`` or ``SO_RCVBUF``.

    With CAP_NET_ADMIN in the initial user namespace, the system's limit does not apply.
    """
    by_force = _SO_SNDBUFFORCE if option == socket.SO_SNDBUF else _SO_RCVBUFFORCE
    try:
        sock.setsockopt(socket.SOL_SOCKET, by_force, size)
    except PermissionError:  # in a user namespace: up to the limit for all users
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def namespace_cookie(sock: socket.socket) -> int:
    """Return the cookie of a socket's network namespace: a number that is unique until a reboot.

    Raises OSError before Linux 5.14.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def request(
    protocol: int, kind: int, payload: bytes, *, dump: bool = False, flags: int = 0
) -> list[bytes]:
    """Send a netlink request in the calling thread's network namespace; return the reply payloads.

    ``protocol`` is, for example, NETLINK_ROUTE. ``kind`` is the message type. ``dump`` requests a
    list of objects. ``flags`` are further flags of the header, such as NLM_F_CREATE. Raises OSError
    with the kernel's errno, TimeoutError after 5 s without a reply.
    """
    return list(replies(protocol, kind, payload, dump=dump, flags=flags))


def replies(
    protocol: int, kind: int, payload: bytes, *, dump: bool = False, flags: int = 0
) -> Generator[bytes, None, None]:
    """Yield the reply payloads as :func:`request` returns them, as soon as they arrive.

    A caller that needs only some of them can stop early: ``close()`` of the result closes the
    socket.
    """
    flags |= NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        # Connected to the kernel's port, so that no other process can send to this socket or fill
        # its buffer. Otherwise a process with CAP_NET_ADMIN in the namespace could.
        sock.connect((0, 0))
        sock.settimeout(_TIMEOUT_SECONDS)
        if dump:
            _announce_buffer(sock)
        sock.send(message(kind, flags, payload, sequence=1))
        while True:
            for reply, body in messages(memoryview(sock.recv(_RECEIVE_BYTES))):
                if reply in {NLMSG_DONE, NLMSG_ERROR}:
                    raise_for_error(body)
                    return
                yield bytes(body)


def _announce_buffer(sock: socket.socket) -> None:
    """Let the kernel know the size of the receive buffer, before a dump.

    The kernel makes the first part of a dump before the first receive. It then has room for about
    3,700 bytes, unless an earlier receive had a larger buffer. An object that does not fit ends
    many dumps without an error (``netlink_dump`` in net/netlink/af_netlink.c).
    """
    sock.send(message(_NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, b""))
    for _, body in messages(memoryview(sock.recv(_RECEIVE_BYTES))):
        raise_for_error(body)
