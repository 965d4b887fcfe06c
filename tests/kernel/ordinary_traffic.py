"""Ordinary traffic between a sandbox and a proxy, of every kind and size, with errors."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

#: Drops some packets at the proxy's end, so that they are sent again.
LOSSY: Final = f"""
table inet lossy {{
    chain input {{
        type filter hook input priority 0
        meta l4proto {{ tcp, udp }} th dport {PROXY_PORT} numgen random mod 397 == 0 drop
    }}
}}
"""

_PYTHON: Final = (os.path.realpath("/usr/bin/python3"), "-I", "-c")

#: A client sends two sizes, the bytes of the first one, and gets the bytes of the second one.
_PROXY: Final = """
import asyncio, contextlib, struct, sys

async def answer(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        up, down = struct.unpack("!II", await reader.readexactly(8))
        while up:
            up -= len(await reader.read(1 << 20)) or up
        writer.write(bytes(down))
        await writer.drain()
    writer.close()

async def main():
    *addresses, port = sys.argv[1:]
    servers = [await asyncio.start_server(answer, each, port) for each in addresses]
    print("ready", flush=True)
    await asyncio.gather(*(each.serve_forever() for each in servers))

asyncio.run(main())
"""

#: One connection to the proxy after another, by several threads, and datagrams beside them. They
#: end after the given number, but not before standard input ends.
_PROGRAMS: Final = """
import contextlib, errno, itertools, os, socket, struct, sys, threading, time, traceback

times, port, *addresses = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

def connect(number):
    for _ in range(20):
        try:
            sock = socket.create_connection((addresses[number % 2], port), timeout=60)
        except OSError as error:
            if error.errno != errno.EHOSTUNREACH:  # the link is down
                raise
            time.sleep(0.1)
        else:
            return converse(number, sock)
    raise TimeoutError

def converse(number, sock):
    with sock:
        if number % 3 == 0:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up, down = 1 << number % 19, 1 << number % 17
        sock.sendall(struct.pack("!II", up, down))
        if number % 10 == 0:  # closed by a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if number % 5 == 0:  # sent in small parts
            for _ in range(up // 4096):
                sock.sendall(bytes(4096))
            sock.sendall(bytes(up % 4096))
        else:
            sock.sendall(bytes(up))
        while down and (read := len(sock.recv(1 << 20))):
            down -= read
        assert not down

def send(number):
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as sock:
        if number % 2:
            sock.setsockopt(socket.IPPROTO_UDP, 103, 1200)  # UDP_SEGMENT: the kernel divides it
            sock.sendto(bytes(12_000), (addresses[0], port))
        else:  # the largest ones in fragments, which the fence refuses
            sock.sendto(bytes(1 << number % 16), (addresses[0], port))

def try_another_way(number):
    with contextlib.suppress(OSError), socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(("203.0.113.9", 443))

def go(number):
    if number % 11 == 0:
        try_another_way(number)
    if number % 7 == 0:
        send(number)
    connect(number)
    time.sleep(number % 60 / 1000)  # no program sends without a pause

numbers = itertools.count()
is_over = threading.Event()

def work():
    for number in numbers:
        if number >= times and is_over.is_set():
            return
        try:
            go(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

threads = [threading.Thread(target=work) for _ in range(32)]
for each in threads:
    each.start()
sys.stdin.read()
is_over.set()
for each in threads:
    each.join()
"""


@contextlib.contextmanager
def proxy(lab: Lab) -> Iterator[None]:
    """Run the proxy at the gateway."""
    start = [*_PYTHON, _PROXY, GATEWAY4, GATEWAY6, str(PROXY_PORT)]
    running = lab.gateway_namespace.call(lambda: subprocess.Popen(start, stdout=subprocess.PIPE))
    with running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            yield
        finally:
            running.kill()


@contextlib.contextmanager
def programs(lab: Lab, connections: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the programs of the sandbox, and kill them at the end if they still run.

    They make ``connections`` connections, and more until their standard input is closed. The
    process ends with 0 if there was no error.
    """
    start = [*_PYTHON, _PROGRAMS, str(connections), str(PROXY_PORT), GATEWAY4, GATEWAY6]
    running = lab.sandbox_namespace.call(lambda: subprocess.Popen(start, stdin=subprocess.PIPE))
    with running:
        try:
            yield running
        finally:
            running.kill()
