"""BPF programs that pass each packet, attached to an interface as XDP or tcx program."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
from typing import TYPE_CHECKING

from ocsf_nft import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _LINK_CREATE = 5, 8, 9, 28
_SCHED_CLS, _XDP = 3, 6
_XDP_ATTACH, _TCX_EGRESS = 37, 47
_RTM_SETLINK = 19
_IFLA_XDP, _IFLA_XDP_FD, _IFLA_XDP_FLAGS = 43 | 0x8000, 1, 3
_SKB_MODE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    done = int(_LIBC.syscall(_SYSCALL, command, buffer, 128))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


@contextlib.contextmanager
def _loaded(kind: int, verdict: int) -> Iterator[int]:
    code = struct.pack("=BBhi", 0xB7, 0, 0, verdict) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    descriptor = _bpf(
        _PROG_LOAD,
        struct.pack("=IIQQ", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence)),
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def attach_xdp(device: str) -> None:
    """Attach an XDP program to an interface of the thread's namespace."""
    with _loaded(_XDP, 2) as program:
        value = netlink.attribute(_IFLA_XDP_FD, struct.pack("=i", program))
        value += netlink.attribute(_IFLA_XDP_FLAGS, struct.pack("=I", _SKB_MODE))
        header = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(device), 0, 0)
        request = header + netlink.attribute(_IFLA_XDP, value)
        netlink.request(netlink.NETLINK_ROUTE, _RTM_SETLINK, request)


def attach_tcx(device: str) -> None:
    """Attach a tcx program for outgoing packets to an interface of the thread's namespace."""
    with _loaded(_SCHED_CLS, -1) as program:
        _bpf(
            _PROG_ATTACH,
            struct.pack("=IIII", socket.if_nametoindex(device), program, _TCX_EGRESS, 0),
        )


@contextlib.contextmanager
def linked_xdp(device: str) -> Iterator[None]:
    """Attach an XDP program by a BPF link, to an interface of the thread's namespace."""
    with _loaded(_XDP, 2) as program:
        index = socket.if_nametoindex(device)
        link = _bpf(_LINK_CREATE, struct.pack("=IIII", program, index, _XDP_ATTACH, _SKB_MODE))
    try:
        yield
    finally:
        os.close(link)
