"""A UDP receiver that is down, with a slow ICMP error."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netns
from ocsf_nft.delivery.sinks import syslog
from ocsf_nft.delivery.sinks.syslog import Syslog
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.attempts import attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

_PORT = 514
_LATE_SECONDS = 0.05
_PORT_UNREACHABLE = struct.pack("!BBHI", 3, 3, 0, 0)
#: The mark of the errors that this test sends. The kernel's own errors are dropped.
_MARK = 7
_RULES = f"""table ip slow {{
    chain out {{
        type filter hook output priority 0
        icmp type destination-unreachable meta mark != {_MARK} drop
    }}
}}"""


def _checksum(message: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    return ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF


@contextmanager
def _slow_errors() -> Iterator[None]:
    """Answer each datagram to the closed port with a late ICMP error."""
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    errors = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    errors.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
    frames.bind(("lo", 0x0800))

    def answer() -> None:
        while packet := frames.recv(2048):
            is_to_receiver = packet[9] == socket.IPPROTO_UDP and packet[22:24] == struct.pack(
                "!H", _PORT
            )
            if is_to_receiver:
                time.sleep(_LATE_SECONDS)
                message = _PORT_UNREACHABLE + packet[:28]
                checksum = struct.pack("!H", _checksum(message))
                errors.sendto(message[:2] + checksum + message[4:], ("127.0.0.1", 0))
                return

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        yield
    finally:
        answering.join()
        frames.close()
        errors.close()


async def _deliver() -> None:
    sink = Syslog(transport="udp", host="127.0.0.1", port=_PORT)
    await sink.open()
    try:
        await sink.deliver(list(attempts(1)))
    finally:
        await sink.close()


@pytest.mark.kernel
def test_udp_sink_waits_for_a_slow_refusal_of_its_first_datagram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 60)  # the error ends it

    def inside() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, check=True)
        with _slow_errors(), pytest.raises(DeliveryError, match="Connection refused"):
            asyncio.run(_deliver())

    netns.in_scratch(inside)


@pytest.mark.parametrize(("last", "pauses"), [(1 << 14, 0), ((1 << 14) + 1, 1)])
async def test_udp_sink_pauses_after_each_64_kib(
    monkeypatch: pytest.MonkeyPatch, last: int, pauses: int
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(receiver.getsockname())
            sender.setblocking(False)
            transport = syslog.Datagrams("127.0.0.1", receiver.getsockname()[1])
            await transport._send(sender, [bytes(1 << 14)] * 3 + [bytes(last)])
    assert waited == [0.002] * pauses
