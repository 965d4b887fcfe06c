"""Attribution by capture of packets that a rule queues to a program (NFQUEUE) before the fence."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import netlink
from tests.kernel import scripted
from tests.kernel.vm_host import own_iptables_lock
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_UDP: Final = 17
_QUEUE: Final = 7
# include/uapi/linux/netfilter/nfnetlink_queue.h
_PACKET, _VERDICT, _CONFIG = 3 << 8, 3 << 8 | 1, 3 << 8 | 2
_CFG_CMD_BIND: Final = netlink.attribute(1, struct.pack("!BxH", 1, 0))
_CFG_COPY_META: Final = netlink.attribute(2, struct.pack("!IB", 0, 1))
_PACKET_HEADER: Final = 1
_ACCEPT: Final = 1
_WITHOUT_END_S: Final = 0.1


@pytest.fixture
def queued(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Accept the packets of a queue in this process; return the list of their ids."""
    own_iptables_lock(tmp_path, monkeypatch)
    rule = f"-t mangle -A OUTPUT -p udp -j NFQUEUE --queue-num {_QUEUE}"
    words = ["iptables-legacy", *rule.split()]
    lab.sandbox_namespace.call(lambda: subprocess.run(words, check=True))
    found: list[int] = []
    is_over = threading.Event()
    with lab.sandbox_namespace.call(
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    ) as sock:
        sock.settimeout(_WITHOUT_END_S)
        for setting in (_CFG_CMD_BIND, _CFG_COPY_META):
            _send(sock, _CONFIG, setting)
        thread = threading.Thread(target=_accept, args=(sock, found, is_over))
        thread.start()
        yield found
        is_over.set()
        thread.join()


def _send(sock: socket.socket, kind: int, attribute: bytes) -> None:
    header = struct.pack("!BBH", 0, 0, _QUEUE)
    sock.send(netlink.message(kind, netlink.NLM_F_REQUEST, header + attribute))


def _accept(sock: socket.socket, found: list[int], is_over: threading.Event) -> None:
    while not is_over.is_set():
        try:
            datagram = memoryview(sock.recv(1 << 16))
        except TimeoutError:
            continue
        for kind, payload in netlink.messages(datagram):
            if kind == _PACKET:
                header = dict(netlink.attributes(payload[4:]))[_PACKET_HEADER]
                found.append(int.from_bytes(header[:4], "big"))
                verdict = struct.pack("!II", _ACCEPT, found[-1])
                _send(sock, _VERDICT, netlink.attribute(2, verdict))


async def test_program_that_accepts_queued_packets_is_not_named(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch, queued: list[int]
) -> None:
    fence(lab, state, monkeypatch)
    program = """
        print_pid()
        s = udp()
        s.settimeout(10)
        s.connect(TO4)
        s.send(b"x")
        with refused: s.recv(1)  # until the fence refuses the datagram
    """
    async with watching(lab) as watched:
        assert watched.chain.method == "capture", watched.chain.reason
        (pid,) = await asyncio.to_thread(scripted.run, lab, program)
        (by,) = await watched.until(1, protocol=_UDP)
    assert queued
    assert {each.pid for each in (by.process, *(seen.process for seen in by.seen)) if each} <= {pid}


#: Sends a datagram by a registered file of io_uring(7), after its descriptor is closed. libc has no
#: functions for these system calls.
_BY_IO_URING: Final = """
    import mmap
    print_pid()
    s = udp()
    s.connect(TO4)
    parameters = bytearray(120)
    ring = libc.syscall(425, 1, (ctypes.c_char * 120).from_buffer(parameters))  # io_uring_setup
    tail, array = struct.unpack_from("4xI16xI", parameters, 40)
    requests = mmap.mmap(ring, 64, offset=0x10000000)
    queue = mmap.mmap(ring, array + 4)
    files = (ctypes.c_int * 1)(s.fileno())
    assert libc.syscall(427, ring, 2, files, 1) == 0  # io_uring_register: IORING_REGISTER_FILES
    s.close()
    data = ctypes.create_string_buffer(b"x")
    # IORING_OP_SEND with IOSQE_FIXED_FILE
    requests[:32] = struct.pack("=BBHiQQII", 26, 1, 0, 0, 0, ctypes.addressof(data), 1, 0)
    queue[array:array + 4] = bytes(4)
    queue[tail:tail + 4] = struct.pack("=I", 1)
    assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1  # io_uring_enter
"""


async def test_sender_that_has_closed_its_registered_socket_is_named(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence(lab, state, monkeypatch)
    async with watching(lab) as watched:
        (pid,) = await asyncio.to_thread(scripted.run, lab, _BY_IO_URING)
        (by,) = await watched.until(1, protocol=_UDP)
    assert (by.process and by.process.pid, by.confidence) == (pid, "high")
