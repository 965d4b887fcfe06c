"""Attempts by a socket that others have too, or have since: children, friends, other programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from typing import Final

from tests.kernel.inside import attempt, fork, given, other_program, say, stay, udp_socket

_CLONE_FILES: Final = 0x400
_SYS_EXIT: Final = {"x86_64": 60, "aarch64": 93}


def forked() -> None:
    """A parent sends; the child that it had before has the socket too."""
    sock = udp_socket()
    child = fork(stay)
    time.sleep(0.05)
    attempt(sock)
    say(sender=os.getpid(), child=child)
    stay()


def forked_after() -> None:
    """A parent sends, and has a child afterwards."""
    sock = udp_socket()
    attempt(sock)
    time.sleep(1)  # whoever reads the record may be late, and tells the child from the sender by it
    child = fork(stay)
    say(sender=os.getpid(), child=child)
    stay()


def parent_gone() -> None:
    """A parent sends and ends; its child is left with the socket."""

    mine, other = socket.socketpair()

    def parent() -> None:
        sock = udp_socket()
        child = fork(stay)
        time.sleep(0.05)
        attempt(sock)
        other.send(str(child).encode())

    sender = fork(parent)
    os.waitpid(sender, 0)
    say(sender=sender, child=int(mine.recv(16)))
    stay()


def child_gone() -> None:
    """A child sends and ends; its parent is left with the socket."""
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    os.waitpid(child, 0)
    say(sender=child, parent=os.getpid())
    stay()


def child_dead() -> None:
    """The same, and its parent has not waited for it."""
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    say(sender=child, parent=os.getpid())
    stay()


def child_ignored() -> None:
    """The same, and its parent doesn't want to know."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)  # waits until it is gone, and finds nobody to be told of then
    say(sender=child, parent=os.getpid())
    stay()


def passed() -> None:
    """A process sends, and passes the socket to another one; both have it."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _kept = socket.recv_fds(other, 16, 1)
        other.send(b"have")
        stay()

    receiver = fork(receive)
    time.sleep(0.05)
    sock = udp_socket()
    attempt(sock)
    socket.send_fds(mine, [b"x"], [sock.fileno()])
    mine.recv(16)
    say(sender=os.getpid(), receiver=receiver)
    stay()


def passed_on() -> None:
    """The same, and the sender has ended."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _kept = socket.recv_fds(other, 16, 1)
        other.send(b"have")
        stay()

    receiver = fork(receive)
    time.sleep(0.05)

    def send() -> None:
        sock = udp_socket()
        attempt(sock)
        socket.send_fds(mine, [b"x"], [sock.fileno()])
        mine.recv(16)

    sender = fork(send)
    os.waitpid(sender, 0)
    say(sender=sender, receiver=receiver)
    stay()


def passed_on_well() -> None:
    """The same, and the receiver is a program of its own, which keeps the socket to itself."""
    mine, other = socket.socketpair()
    os.set_inheritable(other.fileno(), True)
    receiving = fork(lambda: other_program("_receive", other.fileno()))
    other.close()
    mine.recv(16)

    def send() -> None:
        sock = udp_socket()
        attempt(sock)
        socket.send_fds(mine, [b"x"], [sock.fileno()])
        mine.recv(16)

    sender = fork(send)
    os.waitpid(sender, 0)
    say(sender=sender, receiver=receiving)
    stay()


def _receive() -> None:
    other = socket.socket(fileno=given())
    other.send(b"here")
    _, (kept,), _, _ = socket.recv_fds(other, 16, 1)
    os.set_inheritable(kept, False)
    other.send(b"have")
    stay()


def executed() -> None:
    """Sent by one program; the process runs another one since, which has kept the socket."""
    sock = udp_socket()
    os.set_inheritable(sock.fileno(), True)
    attempt(sock)
    say(sender=os.getpid())
    os.execv("/usr/bin/cat", ["cat"])  # noqa: S606 - a fixed program, until its input ends


def thread_alone() -> None:
    """Sent by a thread that shares its table of descriptors with no other."""
    done = threading.Event()

    def inside() -> None:
        ctypes.CDLL(None).unshare(_CLONE_FILES)
        sock = udp_socket()
        attempt(sock)
        done.set()
        stay()

    threading.Thread(target=inside).start()
    done.wait()
    say(sender=os.getpid())


def leader_dead() -> None:
    """Sent by a process whose first thread has ended."""

    def inside() -> None:
        sock = udp_socket()
        time.sleep(0.1)
        attempt(sock)
        say(sender=os.getpid())
        stay()

    threading.Thread(target=inside).start()
    ctypes.CDLL(None).syscall(_SYS_EXIT[os.uname().machine], 0)
