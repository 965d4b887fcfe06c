"""Attribution by capture of packets with unusual headers, which only a raw socket sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.kernel import scripted
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _is_fenced(lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fence(lab, state, monkeypatch)


async def _assert_is_named(lab: Lab, program: str) -> None:
    async with watching(lab) as watched:
        (pid,) = await asyncio.to_thread(scripted.run, lab, program)
        by, *_ = await watched.until(1)
    assert (by.method, by.confidence) == ("capture", "high"), by
    assert by.process is not None
    assert by.process.pid == pid


async def test_sender_of_an_ipv6_packet_to_an_ipv4_mapped_address_is_named(lab: Lab) -> None:
    program = """
        print_pid()
        s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP)
        with refused: s.sendto(struct.pack("!HHHH", 5, 443, 8, 0), (MAPPED[0], 0))
    """
    await _assert_is_named(lab, program)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (60, "b'x'"),
        (60, "bytes((0, 12)) + bytes(102) + b'x'"),
        (44, "struct.pack('!BBHI', 60, 0, 0x80, 7) + bytes(16)"),
        (44, "struct.pack('!BBHI', 51, 0, 0x80, 7) + bytes(16)"),
        (51, "bytes((17, 0, 0, 0, 0, 0, 0, 7))"),
    ],
    ids=["cut", "long", "later fragment", "later fragment of AH", "cut AH"],
)
async def test_sender_of_a_packet_without_a_readable_protocol_is_named(
    lab: Lab, first: int, rest: str
) -> None:
    program = f"""
        print_pid()
        rest = {rest}
        head = struct.pack("!IHBB", 6 << 28, len(rest), {first}, 64)
        ends = b"".join(socket.inet_pton(socket.AF_INET6, each) for each in ("fd00::2", TO6[0]))
        s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with refused: s.sendto(head + ends + rest, (TO6[0], 0))
    """
    await _assert_is_named(lab, program)
