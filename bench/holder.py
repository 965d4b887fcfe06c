"""A program that has a ladder and nothing else, so that its memory is the ladder's.

``RUNG SANDBOX``: it goes on whenever there is a line to read, and says a number when it has.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from bench import command, stage
from ocsf_nft import netns
from ocsf_nft.attribution.fallback_chain import FallbackChain

if TYPE_CHECKING:
    from ocsf_nft.attribution.fallback_chain import TopMethod

#: The rungs whose memory is measured.
TOPS: Final[tuple[TopMethod, ...]] = ("socket", "capture")


async def _hold(top: TopMethod, sandbox: str) -> None:
    """Say so before there is a ladder, and when there is; at the end say what it has lost."""

    async def fell(reason: str) -> None:
        raise stage.BenchError(reason)

    print(0, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with FallbackChain({stage.SANDBOX: netns.named(sandbox)}, top=top) as ladder:
        if ladder.method != top:
            raise stage.BenchError(f"{top}: {ladder.reason}")
        print(0, flush=True)
        keeping = asyncio.create_task(ladder.watch_capture(fell))
        await asyncio.to_thread(sys.stdin.readline)
        keeping.cancel()
        print(ladder.dropped, flush=True)


def main(rung: str, sandbox: str) -> int:
    """Do what the command line says."""
    asyncio.run(_hold(TOPS[TOPS.index(rung)], sandbox))
    return 0


if __name__ == "__main__":
    command.exit_with(lambda: main(*sys.argv[1:]))
