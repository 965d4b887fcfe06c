"""Attempts through a socket of each kind; the process that made it keeps it open."""

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
    print_pids,
    stay,
    udp_socket,
)

_EXPERIMENT: Final = 253  # RFC 3692


def udp() -> None:
    """Send through an unconnected UDP socket."""
    sock = udp_socket()
    attempt(sock)
    print_pids(sender=os.getpid())
    stay()


def udp6() -> None:
    """Send through an unconnected UDP socket over IPv6."""
    sock = udp_socket(socket.AF_INET6)
    attempt(sock, address=INTERNET6)
    print_pids(sender=os.getpid())
    stay()


def udp_mapped() -> None:
    """Send to IPv4 through an IPv6 socket."""
    sock = udp_socket(socket.AF_INET6)
    attempt(sock, address=f"::ffff:{INTERNET4}")
    print_pids(sender=os.getpid())
    stay()


def udp_connected() -> None:
    """Send through a connected UDP socket."""
    sock = udp_socket()
    sock.connect((INTERNET4, PORT))
    with contextlib.suppress(OSError):
        sock.send(b"bypass")
    print_pids(sender=os.getpid())
    stay()


def udp_elsewhere() -> None:
    """Connect to loopback, but send to the internet, from a chosen source address."""
    sock = udp_socket()
    sock.bind(("0.0.0.0", OWN_PORT))
    sock.connect(("127.0.0.1", 9))
    chosen = struct.pack("=I4s4s", 0, socket.inet_aton(OWN_ADDRESS), bytes(4))
    with contextlib.suppress(OSError):
        sock.sendmsg([b"bypass"], [(socket.IPPROTO_IP, 8, chosen)], 0, (INTERNET4, PORT))
    print_pids(sender=os.getpid())
    stay()


def udp_on_device() -> None:
    """Send through a socket bound to a device."""
    sock = udp_socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    attempt(sock)
    print_pids(sender=os.getpid())
    stay()


def udplite() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)
    attempt(sock)
    print_pids(sender=os.getpid())
    stay()


def _echo(kind: int) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 7, 1)


def ping4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(8), (INTERNET4, 0))
    print_pids(sender=os.getpid())
    stay()


def ping6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(128), (INTERNET6, 0))
    print_pids(sender=os.getpid())
    stay()


def raw4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, _EXPERIMENT)
    attempt(sock, port=0)
    print_pids(sender=os.getpid())
    stay()


def raw6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, _EXPERIMENT)
    attempt(sock, address=INTERNET6, port=0)
    print_pids(sender=os.getpid())
    stay()


def packet() -> None:
    """Send a frame past the IP stack."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with contextlib.suppress(OSError):
        sock.sendto(b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(46), ("sb0", 0x88B5))
    print_pids(sender=os.getpid())
    stay()


def tcp() -> None:
    """Connect with TCP, be refused, and keep the socket open."""
    sock = socket.socket()
    sock.connect_ex((INTERNET4, PORT))
    print_pids(sender=os.getpid(), port=sock.getsockname()[1])
    stay()


def tcp_bound() -> None:
    """Connect with TCP from a chosen port, and be refused."""
    sock = socket.socket()
    sock.bind((OWN_ADDRESS, OWN_PORT))
    sock.setblocking(False)
    sock.connect_ex((INTERNET4, PORT))
    print_pids(sender=os.getpid())
    stay()


def tcp6_on_device() -> None:
    """Connect with TCP over IPv6 on a device; a permissive fence allows it, without an answer."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    sock.setblocking(False)
    sock.connect_ex((INTERNET6, PORT))
    print_pids(sender=os.getpid())
    stay()


def tcp_mapped() -> None:
    """Connect with TCP to IPv4 through an IPv6 socket; a permissive fence allows it."""
    sock = socket.socket(socket.AF_INET6)
    sock.setblocking(False)
    sock.connect_ex((f"::ffff:{INTERNET4}", PORT))
    print_pids(sender=os.getpid())
    stay()
