"""Attempts from a port that another process has too, takes over, or is framed by."""

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
    given,
    other_program,
    say,
    stay,
    udp_socket,
)


def tcp_port_taken() -> None:
    """The sender's port is another's at once, by a process that was there before."""
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
    say(sender=sender, taker=taker)
    stay()


def gone() -> None:
    """Sent by a process that has ended."""
    sender = fork(lambda: attempt(udp_socket()))
    os.waitpid(sender, 0)
    say(sender=sender)
    stay()


def port_taken() -> None:
    """The sender has ended, and a process that was there before has its port, and its target."""
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
    say(sender=sender, taker=taker)
    stay()


def churn() -> None:
    """Take one port after the other, and send nothing that is refused."""
    kept: list[socket.socket] = []
    say(pid=os.getpid())
    while not select.select([0], [], [], 0)[0]:
        sock = udp_socket()
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", 9))
            kept.append(sock)
        if len(kept) > 12:
            kept.pop(0).close()


def shared_port() -> None:
    """Two processes have a socket with the port, one of them has sent."""

    def have() -> socket.socket:
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    sock = have()
    mine, others = socket.socketpair()

    def other() -> None:
        sock.close()
        _kept = have()
        others.send(b"have")
        stay()

    child = fork(other)
    mine.recv(16)
    attempt(sock)
    say(sender=os.getpid(), other=child)
    stay()


def shared_port_gone() -> None:
    """The same, and the one that has sent has ended."""

    def have() -> socket.socket:
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    kept = have()
    sender = fork(lambda: attempt(have()))
    os.waitpid(sender, 0)
    say(sender=sender, kept=kept.fileno())
    stay()


def many() -> None:
    """More sockets with one port than are looked through."""
    kept = []
    for _ in range(400):
        sock = udp_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        kept.append(sock)
    attempt(kept[0])
    say(sender=os.getpid(), sockets=len(kept))
    stay()


def other_user() -> None:
    """Root has a socket with the port; a user has one too, and sends."""
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
    say(sender=sender, other=os.getpid())
    stay()


def _sharing() -> None:
    sock = udp_socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", OWN_PORT))
    attempt(sock)
    os.write(given(), b"x")
    os.close(given())
    stay()


def forged() -> None:
    """A process makes a UDP packet by hand, as if it came from another's socket."""
    sock, victim = _forge()
    sock.close()  # before a lookup: a process with such a socket may have made any packet
    say(sender=os.getpid(), victim=victim)
    stay()


def forged_openly() -> None:
    """The same, and it keeps what it has made the packet with."""
    _kept, victim = _forge()
    say(sender=os.getpid(), victim=victim)
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
    os.write(given(), b"x")
    os.close(given())
    stay()
