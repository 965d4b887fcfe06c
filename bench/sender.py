"""Program that runs inside a sandbox and attempts to send; it prints its results as JSON.

It needs only the standard library, so that it starts quickly.

``connect ADDRESS PORT TIMES``: blocking TCP connects; prints the nanoseconds of each refused one.
``flood ADDRESS PORT SECONDS``: UDP at full speed, all of one flow; prints the number of packets.
``scatter ADDRESS PORT SECONDS``: the same with one packet per flow. Each goes to the next port;
after the last port follows the first port of the next address.
``names ADDRESS PORT SECONDS``: DNS queries at full speed, all of one flow, each for another name of
50 characters below one domain.
``paced ADDRESS PORT RATE TIMES PORTS USERS``: UDP at RATE a second. Each packet goes to the next
port by the next user; after PORTS ports the first one follows again. Prints the time before each
one was sent, CLOCK_MONOTONIC in nanoseconds.
``frames LINK ETHERTYPE SECONDS``: AF_PACKET frames through a link, as soon as it exists.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import json
import os
import socket
import sys
import time

_FLOOD_STEP = 500
_LAST_PORT = 65_535
_FIRST_USER = 10_000


def connect(address: str, port: int, times: int) -> list[int]:
    """Try to connect; return the nanoseconds of each refused attempt."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    took: list[int] = []
    for _ in range(times):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            before = time.perf_counter_ns()
            try:
                sock.connect((address, port))
            except ConnectionRefusedError:
                took.append(time.perf_counter_ns() - before)
            except OSError as error:
                print(f"connect: {error}", file=sys.stderr)
    return took


def flood(address: str, port: int, seconds: float) -> int:
    """Send until the time is over; return the number of packets."""
    sent = 0
    target, refusal = (address, port), contextlib.suppress(OSError)
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < end:
            for _ in range(_FLOOD_STEP):
                with refusal:
                    sock.sendto(b"flood", target)
            sent += _FLOOD_STEP
    return sent


def scatter(address: str, port: int, seconds: float) -> int:
    """Send until the time is over, each packet to another address and port; return their number."""
    sent = 0
    end = time.monotonic() + seconds
    network, refusal = int(ipaddress.ip_address(address)), contextlib.suppress(OSError)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < end:
            for _ in range(_FLOOD_STEP):
                with refusal:
                    sock.sendto(b"flood", (address, port))
                port += 1
                if port > _LAST_PORT:
                    network, port = network + 1, 1
                    address = str(ipaddress.ip_address(network))
            sent += _FLOOD_STEP
    return sent


def names(address: str, port: int, seconds: float) -> int:
    """Send queries until the time is over; return their number."""
    sent = 0
    target, refusal = (address, port), contextlib.suppress(OSError)
    head = b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"\x32"
    tail = b"\1t\7example\3com\0\0\x10\0\1"
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < end:
            for _ in range(_FLOOD_STEP):
                with refusal:
                    sock.sendto(head + b"%050x" % (sent * 0x9E3779B97F4A7C15) + tail, target)
                sent += 1
    return sent


def paced(  # noqa: PLR0913, PLR0917 - arguments of the command line
    address: str, port: int, rate: int, times: int, ports: int, users: int
) -> list[int]:
    """Send one packet at a time, to one port after another; return the times (CLOCK_MONOTONIC)."""
    left: list[int] = []
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(_opened_by(_FIRST_USER + each)) for each in range(users)]
        start = time.monotonic()
        for number in range(times):
            flow = number % ports
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            left.append(time.monotonic_ns())
            with contextlib.suppress(OSError):
                socks[flow % users].sendto(b"paced", (address, port + flow))
    return left


def _opened_by(user: int) -> socket.socket:
    """Open a socket as a user: a socket belongs to the user who opened it, not to the sender."""
    os.seteuid(user)
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        os.seteuid(0)


def frames(link: str, ethertype: int, seconds: float) -> int:
    """Send until the time is over; return the number of frames that the kernel accepted."""
    sent = 0
    end = time.monotonic() + seconds
    frame = b"\xff" * 6 + b"\x02" + bytes(5) + ethertype.to_bytes(2, "big") + bytes(46)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                sock.sendto(frame, (link, ethertype))
                sent += 1
    return sent


def main(work: str, address: str, port: str, *more: str) -> None:
    """Run with the arguments of the command line."""
    gc.disable()
    done: object
    if work == "connect":
        done = connect(address, int(port), int(more[0]))
    elif work == "flood":
        done = flood(address, int(port), float(more[0]))
    elif work == "names":
        done = names(address, int(port), float(more[0]))
    elif work == "scatter":
        done = scatter(address, int(port), float(more[0]))
    elif work == "frames":
        done = frames(address, int(port), float(more[0]))
    else:
        done = paced(address, int(port), *map(int, more))
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
