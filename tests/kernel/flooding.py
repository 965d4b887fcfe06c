"""Programs that run inside a sandbox: two floods, and one that makes rare attempts.

``same ADDRESS TIMES [PAUSE]``: TIMES datagrams to one address. ``distinct OCTET TIMES [PAUSE
[UID]]``: TIMES datagrams of a user, each to another pair of address and port. PAUSE is in seconds,
after each thousand. ``users FIRST TIMES [FLOWS]``: FLOWS datagrams, each to another port, from each
of TIMES users. ``rare TIMES``: attempts at random times, each of a unique kind; prints them as
JSON. ``quiet UID FIRST TIMES``: the same by one user, each to another address and port; FIRST is
the first port.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

FLOODED: Final = ("203.0.113.1", "203.0.113.2")
PORT: Final = 9


class Rare(TypedDict):
    """A unique attempt, with its time (ms since the epoch)."""

    time: int
    uid: int
    protocol: int
    destination: str
    port: int | None


def wait_for_sigterm_handler(pid: int) -> None:
    """Wait until a process handles SIGTERM. Before that, the signal ends it without a message."""
    end = time.monotonic() + 60
    while True:
        (caught,) = re.findall(
            r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
        if int(caught, 16) & 1 << signal.SIGTERM - 1:
            return
        assert time.monotonic() < end
        time.sleep(0.01)


def flood_one(address: str, times: int, pause: float = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        send, target = sock.sendto, (address, PORT)
        for _ in _paced(times, pause):
            with contextlib.suppress(OSError):
                send(b"flood", target)


def flood_all(octet: int, times: int, pause: float = 0, uid: int = 0) -> None:
    os.seteuid(uid)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        send = sock.sendto
        for number in _paced(times, pause):
            address = f"{octet}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            with contextlib.suppress(OSError):
                send(b"flood", (address, 1 + number % 60_000))


def _paced(times: int, pause: float) -> Iterator[int]:
    for first in range(0, times, 1000):
        yield from range(first, min(first + 1000, times))
        time.sleep(pause)


def flood_as_users(first: int, number: int, flows: int = 1) -> None:
    """Send a datagram from each of a number of users to each of some ports."""
    for uid in range(first, first + number):
        os.seteuid(uid)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            os.seteuid(0)
            for port in range(PORT, PORT + flows):
                with contextlib.suppress(OSError):
                    sock.sendto(b"flood", (FLOODED[0], port))


def try_rare(times: int) -> list[Rare]:
    made: list[Rare] = []
    for number in range(1, times + 1):
        time.sleep(random.uniform(0, 0.1))
        uid, protocol, port = 0, socket.IPPROTO_UDP, PORT
        address = FLOODED[0]
        match random.choice(("uid", "destination", "port", "protocol", "tcp")):
            case "uid":
                uid = 1000 + number
            case "destination":
                address = f"198.51.100.{1 + number % 250}"
                port = 1000 + number
            case "port":
                port = 1000 + number
            case "protocol":
                protocol = 143 + number % 110  # unassigned by IANA
                address = f"203.0.113.{3 + number % 250}"
            case _:
                protocol, port = socket.IPPROTO_TCP, 1000 + number
        has_port = protocol in {socket.IPPROTO_UDP, socket.IPPROTO_TCP}
        made.append(
            Rare(
                time=time.time_ns() // 1_000_000,
                uid=uid,
                protocol=protocol,
                destination=address,
                port=port if has_port else None,
            )
        )
        _make(made[-1])
    return made


def try_as(uid: int, first: int, times: int) -> list[Rare]:
    """Make TCP attempts of one user, each with a flow of its own.

    Attempts without a flow have one log budget for each user and protocol.
    """
    made: list[Rare] = []
    for number in range(times):
        time.sleep(random.uniform(0, 0.1))
        made.append(
            Rare(
                time=time.time_ns() // 1_000_000,
                uid=uid,
                protocol=socket.IPPROTO_TCP,
                destination=f"198.51.100.{1 + number}",
                port=first + number,
            )
        )
        _make(made[-1])
    return made


def _make(rare: Rare) -> None:
    kinds = {socket.IPPROTO_TCP: socket.SOCK_STREAM, socket.IPPROTO_UDP: socket.SOCK_DGRAM}
    kind = kinds.get(rare["protocol"], socket.SOCK_RAW)
    os.seteuid(rare["uid"])  # nftables matches the owner of the socket
    with socket.socket(socket.AF_INET, kind, rare["protocol"]) as sock:
        os.seteuid(0)
        with contextlib.suppress(OSError):
            if kind == socket.SOCK_STREAM:
                sock.connect((rare["destination"], rare["port"]))
            else:
                sock.sendto(b"rare", (rare["destination"], rare["port"] or 0))


def start(namespace: Namespace, *arguments: str) -> subprocess.Popen[bytes]:
    """Run one of these programs inside a sandbox; the caller waits for its end."""
    command = [sys.executable, __file__, *arguments]
    output = subprocess.PIPE if arguments[0] in {"rare", "quiet"} else subprocess.DEVNULL
    return namespace.call(lambda: subprocess.Popen(command, stdout=output))


def made(program: subprocess.Popen[bytes]) -> list[Rare]:
    """Wait for the program of rare attempts, and return its attempts."""
    output, _ = program.communicate(timeout=300)
    rare: list[Rare] = orjson.loads(output)
    return rare


if __name__ == "__main__":
    what, argument, *more = sys.argv[1:]
    if what == "same":
        flood_one(argument, int(more[0]), *map(float, more[1:]))
    elif what == "distinct":
        times, pause, uid = (*more, *("0", "0")[len(more) - 1 :])
        flood_all(int(argument), int(times), float(pause), int(uid))
    elif what == "users":
        flood_as_users(int(argument), *map(int, more))
    elif what == "quiet":
        sys.stdout.buffer.write(orjson.dumps(try_as(int(argument), *map(int, more))))
    else:
        sys.stdout.buffer.write(orjson.dumps(try_rare(int(argument))))
