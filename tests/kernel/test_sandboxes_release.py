"""Release of a sandbox while it sends: each refused packet is counted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.netns import named
from tests.kernel.conftest import nft
from tests.kernel.serving import sandbox, serving, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.serving import Served

pytestmark = pytest.mark.kernel

#: Sends to one port until its standard input ends, and prints how many packets were refused.
_FLOOD = """
import select, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused = others = 0
print("started", flush=True)
for number in range(20_000_000):
    try:
        sender.sendto(b"attempt", ("203.0.113.9", 53))
        others += 1
    except PermissionError:
        refused += 1
    if number % 64 == 0 and select.select([sys.stdin], [], [], 0)[0]:
        break
print(refused, others)
"""


@pytest.mark.parametrize("is_owned", [False, True])
async def test_each_packet_that_is_refused_before_a_release_is_counted(
    made: tuple[str, ...], tmp_path: Path, *, is_owned: bool
) -> None:
    name = made[0]
    async with serving(tmp_path) as served:
        for _ in range(3):
            await served.service.put(sandbox(name, exclusive=is_owned))
            counted = sum(served.attempts(name).values())
            flood = await asyncio.to_thread(_flood, name)
            assert flood.stdin is not None
            assert flood.stdout is not None
            assert await asyncio.to_thread(flood.stdout.readline) == b"started\n"
            await until(partial(_has_more, served, name, counted))
            final = await served.service.release(name)
            assert nft(named(name), "list", "ruleset") == ""
            (rest, _) = await asyncio.to_thread(flood.communicate)
            refused, sent = map(int, rest.split())
            assert sent > 0
            (egress,) = (each for each in final.balances if each.rule == "egress")
            assert egress.refused >= refused > 0
            await until(lambda: served.messages(name)[-1].endswith("packets."))
            assert served.attempts(name)[53] - counted == refused
            assert (egress.counter_mismatch, egress.pending) == (0, 0)


def _has_more(served: Served, name: str, counted: int) -> bool:
    return sum(served.attempts(name).values()) > counted


def _flood(name: str) -> subprocess.Popen[bytes]:
    return named(name).call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", _FLOOD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
