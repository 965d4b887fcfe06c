"""Attempts from a port that another process has too, takes over, or imitates."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time

from tests.kernel.inside import (
    INTERNET4,
    OWN_ADDRESS,
    OWN_PORT,
    PORT,
    attempt,
    fork,
    given_descriptor,
    other_program,
    print_pids,
    stay,
    udp_socket,
)


def tcp_port_taken() -> None:
    """Give the sender's port at once to a process that started before."""
    mine, other = socket.socketpair()

    def take() -> None:
        mine.close()
        port = int(other.recv(16))
        sock = socket.socket()
        sock.bind((OWN_ADDRESS, port))
        sock.setblocking(False)
        other.send(b"taken")
        stay()

    taker = fork(take)
    other.close()

    def try_it() -> None:
        sock = socket.socket()
        sock.connect_ex((INTERNET4, PORT))
        mine.send(str(sock.getsockname()[1]).encode())

    sender = fork(try_it)
    mine.recv(16)
    os.waitpid(sender, 0)
    print_pids(sender=sender, taker=taker)
    stay()


def exited() -> None:
    """Send as a process that has ended."""
    sender = fork(lambda: attempt(udp_socket()))
    os.waitpid(sender, 0)
    print_pids(sender=sender)
    stay()


def port_taken() -> None:
    """Give the ended sender's port and target to a process that started before."""
    mine, other = socket.socketpair()

    def take() -> None:
        mine.close()
        port = int(other.recv(16))
        sock = udp_socket()
        while True:
            try:
                sock.bind((OWN_ADDRESS, port))
                break
            except OSError:
                time.sleep(0.0001)
        sock.connect((INTERNET4, PORT))
        other.send(b"taken")
        stay()

    taker = fork(take)
    other.close()
    time.sleep(0.05)  # it started well before the packet was sent

    def send() -> None:
        sock = udp_socket()
        sock.connect((INTERNET4, PORT))
        mine.send(str(sock.getsockname()[1]).encode())
        with contextlib.suppress(OSError):
            sock.send(b"bypass")

    sender = fork(send)
    mine.recv(16)
    print_pids(sender=sender, taker=taker)
    stay()


def churn() -> None:
    """Take one port after the other, and send no refused packet."""
    opened: list[socket.socket] = []
    print_pids(pid=os.getpid())
    while not select.select([0], [], [], 0)[0]:
        sock = udp_socket()
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", 9))
            opened.append(sock)
        if len(opened) > 12:
            opened.pop(0).close()


def shared_port() -> None:
    """Send as one of two processes that have a socket with the port."""

    def have() -> socket.socket:
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    sock = have()
    mine, others = socket.socketpair()

    def other() -> None:
        sock.close()
        _open = have()
        others.send(b"have")
        stay()

    child = fork(other)
    mine.recv(16)
    attempt(sock)
    print_pids(sender=os.getpid(), other=child)
    stay()


def shared_port_exited() -> None:
    """Send as one of two processes that have a socket with the port, and end."""

    def have() -> socket.socket:
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    sock = have()
    sender = fork(lambda: attempt(have()))
    os.waitpid(sender, 0)
    print_pids(sender=sender, descriptor=sock.fileno())
    stay()


def many() -> None:
    """Open more sockets with one port than a lookup checks."""
    opened = []
    for _ in range(400):
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        opened.append(sock)
    attempt(opened[0])
    print_pids(sender=os.getpid(), sockets=len(opened))
    stay()


def other_user() -> None:
    """Send as a user while root has a socket with the same port."""
    sock = udp_socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", OWN_PORT))
    sent, done = os.pipe()
    os.set_inheritable(done, True)

    def user() -> None:
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        other_program("_sharing", done)

    sender = fork(user)
    os.read(sent, 1)
    print_pids(sender=sender, other=os.getpid())
    stay()


def _sharing() -> None:
    sock = udp_socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", OWN_PORT))
    attempt(sock)
    os.write(given_descriptor(), b"x")
    os.close(given_descriptor())
    stay()


def forged() -> None:
    """Make a UDP packet by hand, with the addresses of another process's socket."""
    sock, victim = _forge()
    sock.close()  # before a lookup: a process with such a socket may have made any packet
    print_pids(sender=os.getpid(), victim=victim)
    stay()


def forged_openly() -> None:
    """Make a UDP packet by hand, and keep the raw socket open."""
    _open, victim = _forge()
    print_pids(sender=os.getpid(), victim=victim)
    stay()


def _forge() -> tuple[socket.socket, int]:
    ready, done = os.pipe()
    os.set_inheritable(done, True)
    victim = fork(lambda: other_program("_bound", done))
    os.read(ready, 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    addresses = socket.inet_aton(OWN_ADDRESS) + socket.inet_aton(INTERNET4)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 34, 0, 0, 64, 17, 0) + addresses
    attempt(sock, header + struct.pack("!HHHH", OWN_PORT, PORT, 14, 0) + b"forged", port=0)
    return sock, victim


def _bound() -> None:
    sock = udp_socket()
    sock.bind(("0.0.0.0", OWN_PORT))
    os.write(given_descriptor(), b"x")
    os.close(given_descriptor())
    stay()
