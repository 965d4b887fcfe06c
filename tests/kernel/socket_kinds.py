"""Attempts by a socket of each kind, which the process keeps that made it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

from tests.kernel.inside import (
    INTERNET4,
    INTERNET6,
    OWN_ADDRESS,
    OWN_PORT,
    PORT,
    attempt,
    say,
    stay,
    udp_socket,
)

_EXPERIMENT: Final = 253  # RFC 3692


def udp() -> None:
    """Not connected, and kept."""
    sock = udp_socket()
    attempt(sock)
    say(sender=os.getpid())
    stay()


def udp6() -> None:
    """The same over IPv6."""
    sock = udp_socket(socket.AF_INET6)
    attempt(sock, address=INTERNET6)
    say(sender=os.getpid())
    stay()


def udp_mapped() -> None:
    """To IPv4, by a socket of IPv6."""
    sock = udp_socket(socket.AF_INET6)
    attempt(sock, address=f"::ffff:{INTERNET4}")
    say(sender=os.getpid())
    stay()


def udp_connected() -> None:
    """Connected."""
    sock = udp_socket()
    sock.connect((INTERNET4, PORT))
    with contextlib.suppress(OSError):
        sock.send(b"bypass")
    say(sender=os.getpid())
    stay()


def udp_elsewhere() -> None:
    """Connected to loopback, and sent to the internet nevertheless, from an address of choice."""
    sock = udp_socket()
    sock.bind(("0.0.0.0", OWN_PORT))
    sock.connect(("127.0.0.1", 9))
    chosen = struct.pack("=I4s4s", 0, socket.inet_aton(OWN_ADDRESS), bytes(4))
    with contextlib.suppress(OSError):
        sock.sendmsg([b"bypass"], [(socket.IPPROTO_IP, 8, chosen)], 0, (INTERNET4, PORT))
    say(sender=os.getpid())
    stay()


def udp_on_device() -> None:
    """Bound to a device."""
    sock = udp_socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    attempt(sock)
    say(sender=os.getpid())
    stay()


def udplite() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)
    attempt(sock)
    say(sender=os.getpid())
    stay()


def _echo(kind: int) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 7, 1)


def ping4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(8), (INTERNET4, 0))
    say(sender=os.getpid())
    stay()


def ping6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(128), (INTERNET6, 0))
    say(sender=os.getpid())
    stay()


def raw4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, _EXPERIMENT)
    attempt(sock, port=0)
    say(sender=os.getpid())
    stay()


def raw6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, _EXPERIMENT)
    attempt(sock, address=INTERNET6, port=0)
    say(sender=os.getpid())
    stay()


def packet() -> None:
    """A frame past the IP stack."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with contextlib.suppress(OSError):
        sock.sendto(b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(46), ("sb0", 0x88B5))
    say(sender=os.getpid())
    stay()


def tcp() -> None:
    """Refused, and the socket kept."""
    sock = socket.socket()
    sock.connect_ex((INTERNET4, PORT))
    say(sender=os.getpid(), port=sock.getsockname()[1])
    stay()


def tcp_bound() -> None:
    """Refused, from a port that the process has chosen itself."""
    sock = socket.socket()
    sock.bind((OWN_ADDRESS, OWN_PORT))
    sock.setblocking(False)
    sock.connect_ex((INTERNET4, PORT))
    say(sender=os.getpid())
    stay()


def tcp6_on_device() -> None:
    """Let through and never answered, where a fence is permissive."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    sock.setblocking(False)
    sock.connect_ex((INTERNET6, PORT))
    say(sender=os.getpid())
    stay()


def tcp_mapped() -> None:
    """The same to IPv4, by a socket of IPv6."""
    sock = socket.socket(socket.AF_INET6)
    sock.setblocking(False)
    sock.connect_ex((f"::ffff:{INTERNET4}", PORT))
    say(sender=os.getpid())
    stay()
