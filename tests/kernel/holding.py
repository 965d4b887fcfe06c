"""Attempts by processes that keep, share, pass on, lose or take over the socket they are made with.

Run as a program (inside the sandbox) it makes one and says in a line which processes there were,
and lives until its standard input ends; imported, it starts itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.netns import Namespace

INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"
#: Each flow has a log budget of its own: who tries often tries other ports.
PORT: Final = int(sys.argv[2]) if __name__ == "__main__" else 443
OWN_PORT: Final = 5000
EXPERIMENT: Final = 253  # RFC 3692
_CLONE_FILES: Final = 0x400
_SYS_EXIT: Final = {"x86_64": 60, "aarch64": 93}

#: What a program says: the process that sent, and others that matter.
Said = dict[str, Any]


class Program:
    """A running program, and what it said."""

    def __init__(self, process: subprocess.Popen[str], said: Said) -> None:
        self.pid = process.pid
        self.said = said
        self._process = process

    def end(self) -> None:
        """Have it end, and what it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        # Whoever else has it open is still there.
        self._process.stdout.read()
        self._process.stdout.close()


def start(namespace: Namespace, scenario: str, *, uid: int = 1000, port: int = PORT) -> Program:
    """Run a scenario as a user, and wait until it has said its line."""
    # In the command line: the user may not be allowed to read the folder that this file is in.
    command = ["/usr/bin/python3", "-I", "-c", Path(__file__).read_text("utf-8")]
    process = namespace.call(
        lambda: subprocess.Popen(
            [*command, scenario, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
        )
    )
    assert process.stdout is not None
    return Program(process, json.loads(process.stdout.readline()))


def _say(**pids: object) -> None:
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()


def _stay() -> NoReturn:
    """Until nobody wants us any more."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def _other_program(scenario: str, descriptor: int) -> NoReturn:
    """Run another scenario in this process's place."""
    more = (scenario, sys.argv[2], str(descriptor))
    os.execv("/usr/bin/python3", [*sys.orig_argv[:4], *more])  # noqa: S606 - a fixed program


def _udp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def _send(
    sock: socket.socket, data: bytes = b"bypass", *, address: str = INTERNET4, port: int = PORT
) -> None:
    with contextlib.suppress(OSError):
        sock.sendto(data, (address, port))


def _echo(kind: int) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 7, 1)


def udp() -> None:
    """Not connected, and kept."""
    sock = _udp()
    _send(sock)
    _say(sender=os.getpid())
    _stay()


def udp6() -> None:
    """The same over IPv6."""
    sock = _udp(socket.AF_INET6)
    _send(sock, address=INTERNET6)
    _say(sender=os.getpid())
    _stay()


def udp_mapped() -> None:
    """To IPv4, by a socket of IPv6."""
    sock = _udp(socket.AF_INET6)
    _send(sock, address=f"::ffff:{INTERNET4}")
    _say(sender=os.getpid())
    _stay()


def udp_connected() -> None:
    """Connected."""
    sock = _udp()
    sock.connect((INTERNET4, PORT))
    with contextlib.suppress(OSError):
        sock.send(b"bypass")
    _say(sender=os.getpid())
    _stay()


def udp_elsewhere() -> None:
    """Connected to loopback, and sent to the internet nevertheless, from an address of choice."""
    sock = _udp()
    sock.bind(("0.0.0.0", OWN_PORT))
    sock.connect(("127.0.0.1", 9))
    chosen = struct.pack("=I4s4s", 0, socket.inet_aton("10.200.0.2"), bytes(4))
    with contextlib.suppress(OSError):
        sock.sendmsg([b"bypass"], [(socket.IPPROTO_IP, 8, chosen)], 0, (INTERNET4, PORT))
    _say(sender=os.getpid())
    _stay()


def udp_on_device() -> None:
    """Bound to a device."""
    sock = _udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    _send(sock)
    _say(sender=os.getpid())
    _stay()


def udplite() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)
    _send(sock)
    _say(sender=os.getpid())
    _stay()


def ping4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(8), (INTERNET4, 0))
    _say(sender=os.getpid())
    _stay()


def ping6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    with contextlib.suppress(OSError):
        sock.sendto(_echo(128), (INTERNET6, 0))
    _say(sender=os.getpid())
    _stay()


def raw4() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, EXPERIMENT)
    _send(sock, port=0)
    _say(sender=os.getpid())
    _stay()


def raw6() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, EXPERIMENT)
    _send(sock, address=INTERNET6, port=0)
    _say(sender=os.getpid())
    _stay()


def packet() -> None:
    """A frame past the IP stack."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with contextlib.suppress(OSError):
        sock.sendto(b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(46), ("sb0", 0x88B5))
    _say(sender=os.getpid())
    _stay()


def forged() -> None:
    """A process makes a UDP packet by hand, as if it came from another's socket."""
    _forge().close()
    _stay()


def forged_openly() -> None:
    """The same, and it keeps what it has made the packet with."""
    _kept = _forge()
    _stay()


def _forge() -> socket.socket:
    ready, say = os.pipe()
    os.set_inheritable(say, True)
    victim = _child(lambda: _other_program("_bound", say))
    os.read(ready, 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    addresses = socket.inet_aton("10.200.0.2") + socket.inet_aton(INTERNET4)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 34, 0, 0, 64, 17, 0) + addresses
    _send(sock, header + struct.pack("!HHHH", OWN_PORT, PORT, 14, 0) + b"forged", port=0)
    _say(sender=os.getpid(), victim=victim)
    return sock


def _bound() -> None:
    sock = _udp()
    sock.bind(("0.0.0.0", OWN_PORT))
    os.write(int(sys.argv[3]), b"x")
    os.close(int(sys.argv[3]))
    _stay()


def tcp() -> None:
    """Refused, and the socket kept."""
    sock = socket.socket()
    sock.connect_ex((INTERNET4, PORT))
    _say(sender=os.getpid(), port=sock.getsockname()[1])
    _stay()


def tcp_bound() -> None:
    """Refused, from a port that the process has chosen itself."""
    sock = socket.socket()
    sock.bind(("10.200.0.2", OWN_PORT))
    sock.setblocking(False)
    sock.connect_ex((INTERNET4, PORT))
    _say(sender=os.getpid())
    _stay()


def tcp6_on_device() -> None:
    """Let through and never answered, where a fence is permissive."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
    sock.setblocking(False)
    sock.connect_ex((INTERNET6, PORT))
    _say(sender=os.getpid())
    _stay()


def tcp_mapped() -> None:
    """The same to IPv4, by a socket of IPv6."""
    sock = socket.socket(socket.AF_INET6)
    sock.setblocking(False)
    sock.connect_ex((f"::ffff:{INTERNET4}", PORT))
    _say(sender=os.getpid())
    _stay()


def tcp_port_taken() -> None:
    """The sender's port is another's at once, by a process that was there before."""
    mine, other = socket.socketpair()

    def take() -> None:
        mine.close()
        port = int(other.recv(16))
        sock = socket.socket()
        sock.bind(("10.200.0.2", port))
        sock.setblocking(False)
        other.send(b"taken")
        _stay()

    taker = _child(take)
    other.close()

    def try_it() -> None:
        sock = socket.socket()
        sock.connect_ex((INTERNET4, PORT))
        mine.send(str(sock.getsockname()[1]).encode())

    sender = _child(try_it)
    mine.recv(16)
    os.waitpid(sender, 0)
    _say(sender=sender, taker=taker)
    _stay()


def gone() -> None:
    """Sent by a process that has ended."""
    sender = _child(lambda: _send(_udp()))
    os.waitpid(sender, 0)
    _say(sender=sender)
    _stay()


def port_taken() -> None:
    """The sender has ended, and a process that was there before has its port, and its target."""
    mine, other = socket.socketpair()

    def take() -> None:
        mine.close()
        port = int(other.recv(16))
        sock = _udp()
        while True:
            try:
                sock.bind(("10.200.0.2", port))
                break
            except OSError:
                time.sleep(0.0001)
        sock.connect((INTERNET4, PORT))
        other.send(b"taken")
        _stay()

    taker = _child(take)
    other.close()
    time.sleep(0.05)  # it started well before the packet was sent

    def send() -> None:
        sock = _udp()
        sock.connect((INTERNET4, PORT))
        mine.send(str(sock.getsockname()[1]).encode())
        with contextlib.suppress(OSError):
            sock.send(b"bypass")

    sender = _child(send)
    mine.recv(16)
    _say(sender=sender, taker=taker)
    _stay()


def churn() -> None:
    """Take one port after the other, and send nothing that is refused."""
    kept: list[socket.socket] = []
    _say(pid=os.getpid())
    while not select.select([0], [], [], 0)[0]:
        sock = _udp()
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", 9))
            kept.append(sock)
        if len(kept) > 12:
            kept.pop(0).close()


def shared_port() -> None:
    """Two processes have a socket with the port, one of them has sent."""

    def have() -> socket.socket:
        sock = _udp()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    sock = have()

    def other() -> None:
        sock.close()
        _kept = have()
        _stay()

    child = _child(other)
    time.sleep(0.2)
    _send(sock)
    _say(sender=os.getpid(), other=child)
    _stay()


def shared_port_gone() -> None:
    """The same, and the one that has sent has ended."""

    def have() -> socket.socket:
        sock = _udp()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        return sock

    kept = have()
    sender = _child(lambda: _send(have()))
    os.waitpid(sender, 0)
    _say(sender=sender, kept=kept.fileno())
    _stay()


def many() -> None:
    """More sockets with one port than are looked through."""
    kept = []
    for _ in range(400):
        sock = _udp()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", OWN_PORT))
        kept.append(sock)
    _send(kept[0])
    _say(sender=os.getpid(), sockets=len(kept))
    _stay()


def forked() -> None:
    """A parent sends; the child that it had before has the socket too."""
    sock = _udp()
    child = _child(_stay)
    time.sleep(0.05)
    _send(sock)
    _say(sender=os.getpid(), child=child)
    _stay()


def forked_after() -> None:
    """A parent sends, and has a child afterwards."""
    sock = _udp()
    _send(sock)
    time.sleep(0.1)
    child = _child(_stay)
    _say(sender=os.getpid(), child=child)
    _stay()


def parent_gone() -> None:
    """A parent sends and ends; its child is left with the socket."""

    mine, other = socket.socketpair()

    def parent() -> None:
        sock = _udp()
        child = _child(_stay)
        time.sleep(0.05)
        _send(sock)
        other.send(str(child).encode())

    sender = _child(parent)
    os.waitpid(sender, 0)
    _say(sender=sender, child=int(mine.recv(16)))
    _stay()


def child_gone() -> None:
    """A child sends and ends; its parent is left with the socket."""
    sock = _udp()
    child = _child(lambda: _send(sock))
    os.waitpid(child, 0)
    _say(sender=child, parent=os.getpid())
    _stay()


def child_dead() -> None:
    """The same, and its parent has not waited for it."""
    sock = _udp()
    child = _child(lambda: _send(sock))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    _say(sender=child, parent=os.getpid())
    _stay()


def child_ignored() -> None:
    """The same, and its parent doesn't want to know."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = _udp()
    child = _child(lambda: _send(sock))
    time.sleep(0.1)
    _say(sender=child, parent=os.getpid())
    _stay()


def passed() -> None:
    """A process sends, and passes the socket to another one; both have it."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _kept = socket.recv_fds(other, 16, 1)
        other.send(b"have")
        _stay()

    receiver = _child(receive)
    time.sleep(0.05)
    sock = _udp()
    _send(sock)
    socket.send_fds(mine, [b"x"], [sock.fileno()])
    mine.recv(16)
    _say(sender=os.getpid(), receiver=receiver)
    _stay()


def passed_on() -> None:
    """The same, and the sender has ended."""
    mine, other = socket.socketpair()

    def receive() -> None:
        _kept = socket.recv_fds(other, 16, 1)
        other.send(b"have")
        _stay()

    receiver = _child(receive)
    time.sleep(0.05)

    def send() -> None:
        sock = _udp()
        _send(sock)
        socket.send_fds(mine, [b"x"], [sock.fileno()])
        mine.recv(16)

    sender = _child(send)
    os.waitpid(sender, 0)
    _say(sender=sender, receiver=receiver)
    _stay()


def passed_on_well() -> None:
    """The same, and the receiver is a program of its own, which keeps the socket to itself."""
    mine, other = socket.socketpair()
    os.set_inheritable(other.fileno(), True)
    receiving = _child(lambda: _other_program("_receive", other.fileno()))
    other.close()
    mine.recv(16)

    def send() -> None:
        sock = _udp()
        _send(sock)
        socket.send_fds(mine, [b"x"], [sock.fileno()])
        mine.recv(16)

    sender = _child(send)
    os.waitpid(sender, 0)
    _say(sender=sender, receiver=receiving)
    _stay()


def _receive() -> None:
    other = socket.socket(fileno=int(sys.argv[3]))
    other.send(b"here")
    _, (kept,), _, _ = socket.recv_fds(other, 16, 1)
    os.set_inheritable(kept, False)
    other.send(b"have")
    _stay()


def other_user() -> None:
    """Root has a socket with the port; a user has one too, and sends."""
    sock = _udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", OWN_PORT))
    sent, say = os.pipe()
    os.set_inheritable(say, True)

    def user() -> None:
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        _other_program("_sharing", say)

    sender = _child(user)
    os.read(sent, 1)
    _say(sender=sender, other=os.getpid())
    _stay()


def _sharing() -> None:
    sock = _udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", OWN_PORT))
    _send(sock)
    os.write(int(sys.argv[3]), b"x")
    os.close(int(sys.argv[3]))
    _stay()


def executed() -> None:
    """Sent by one program; the process runs another one since, which has kept the socket."""
    sock = _udp()
    os.set_inheritable(sock.fileno(), True)
    _send(sock)
    _say(sender=os.getpid())
    os.execv("/usr/bin/cat", ["cat"])  # noqa: S606 - a fixed program, until its input ends


def thread_alone() -> None:
    """Sent by a thread that shares its table of descriptors with no other."""
    done = threading.Event()

    def inside() -> None:
        ctypes.CDLL(None).unshare(_CLONE_FILES)
        sock = _udp()
        _send(sock)
        done.set()
        _stay()

    threading.Thread(target=inside).start()
    done.wait()
    _say(sender=os.getpid())


def leader_dead() -> None:
    """Sent by a process whose first thread has ended."""

    def inside() -> None:
        sock = _udp()
        time.sleep(0.1)
        _send(sock)
        _say(sender=os.getpid())
        _stay()

    threading.Thread(target=inside).start()
    ctypes.CDLL(None).syscall(_SYS_EXIT[os.uname().machine], 0)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
