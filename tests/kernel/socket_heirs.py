"""Attempts through a socket that other processes have too, or had: children and other programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from typing import Final

from tests.kernel.inside import (
    attempt,
    fork,
    given_descriptor,
    other_program,
    print_pids,
    stay,
    udp_socket,
    wait_for_record,
)

_CLONE_FILES: Final = 0x400
_SYS_EXIT: Final = {"x86_64": 60, "aarch64": 93}


def forked() -> None:
    """Send as a parent whose earlier child has the socket too."""
    sock = udp_socket()
    child = fork(stay)
    time.sleep(0.05)
    attempt(sock)
    print_pids(sender=os.getpid(), child=child)
    stay()


def forked_after() -> None:
    """Send as a parent, and fork a child afterwards."""
    sock = udp_socket()
    attempt(sock)
    # The record has the time at which it was read. The child's start time, which is inexact, must
    # be later than that.
    wait_for_record()
    time.sleep(0.05)
    child = fork(stay)
    print_pids(sender=os.getpid(), child=child)
    stay()


def parent_exited() -> None:
    """Send as a parent and end; its child still has the socket."""
    mine, other = socket.socketpair()

    def parent() -> None:
        sock = udp_socket()
        child = fork(stay)
        time.sleep(0.05)
        attempt(sock)
        other.send(str(child).encode())

    sender = fork(parent)
    os.waitpid(sender, 0)
    print_pids(sender=sender, child=int(mine.recv(16)))
    stay()


def child_exited() -> None:
    """Send as a child and end; its parent still has the socket."""
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    os.waitpid(child, 0)
    print_pids(sender=child, parent=os.getpid())
    stay()


def child_dead() -> None:
    """Send as a child and end; the parent has not waited for it."""
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    print_pids(sender=child, parent=os.getpid())
    stay()


def child_ignored() -> None:
    """Send as a child and end; the parent ignores SIGCHLD."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = udp_socket()
    child = fork(lambda: attempt(sock))
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)  # returns when the child has ended, without its status
    print_pids(sender=child, parent=os.getpid())
    stay()


def passed() -> None:
    """Send, and pass the socket to another process; both have it."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _received = socket.recv_fds(other, 16, 1)
        other.send(b"have")
        stay()

    receiver = fork(receive)
    time.sleep(0.05)
    sock = udp_socket()
    attempt(sock)
    socket.send_fds(mine, [b"x"], [sock.fileno()])
    mine.recv(16)
    print_pids(sender=os.getpid(), receiver=receiver)
    stay()


def passed_on() -> None:
    """Send, pass the socket to another process, and end."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _received = socket.recv_fds(other, 16, 1)
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
    print_pids(sender=sender, receiver=receiver)
    stay()


def passed_on_well() -> None:
    """Send and pass the socket on, as above, but to another program that sets close-on-exec."""
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
    print_pids(sender=sender, receiver=receiving)
    stay()


def _receive() -> None:
    other = socket.socket(fileno=given_descriptor())
    other.send(b"here")
    _, (received,), _, _ = socket.recv_fds(other, 16, 1)
    os.set_inheritable(received, False)
    other.send(b"have")
    stay()


def executed() -> None:
    """Send, then run another program in the same process, with the socket still open."""
    sock = udp_socket()
    os.set_inheritable(sock.fileno(), True)
    attempt(sock)
    print_pids(sender=os.getpid())
    os.execv("/usr/bin/cat", ["cat"])  # noqa: S606 - a fixed program, until its input ends


def thread_alone() -> None:
    """Send as a thread that shares its descriptor table with no other."""
    done = threading.Event()

    def inside() -> None:
        ctypes.CDLL(None).unshare(_CLONE_FILES)
        sock = udp_socket()
        attempt(sock)
        done.set()
        stay()

    threading.Thread(target=inside).start()
    done.wait()
    print_pids(sender=os.getpid())


def leader_dead() -> None:
    """Send as a process whose first thread has ended."""

    def inside() -> None:
        sock = udp_socket()
        time.sleep(0.1)
        attempt(sock)
        print_pids(sender=os.getpid())
        stay()

    threading.Thread(target=inside).start()
    ctypes.CDLL(None).syscall(_SYS_EXIT[os.uname().machine], 0)
