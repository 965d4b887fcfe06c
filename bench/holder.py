"""Program with an attribution fallback chain and nothing else, to measure the chain's memory.

``METHOD SANDBOX``: it takes the next step for each line of its input, and prints a number after it.
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

#: The methods whose memory is measured.
TOPS: Final[tuple[TopMethod, ...]] = ("socket", "capture")


async def _hold(top: TopMethod, sandbox: str) -> None:
    """Print 0 before and after the start of the chain; at the end print the number of drops."""

    async def fell(reason: str) -> None:
        raise stage.BenchError(reason)

    print(0, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with FallbackChain(top=top) as chain:
        await chain.attach(netns.named(sandbox))
        if chain.method != top:
            raise stage.BenchError(f"{top}: {chain.reason}")
        print(0, flush=True)
        keeping = asyncio.create_task(chain.watch_capture(fell))
        await asyncio.to_thread(sys.stdin.readline)
        keeping.cancel()
        print(chain.dropped, flush=True)


def main(method: str, sandbox: str) -> int:
    """Run with the arguments of the command line."""
    asyncio.run(_hold(TOPS[TOPS.index(method)], sandbox))
    return 0


if __name__ == "__main__":
    command.exit_with(lambda: main(*sys.argv[1:]))
