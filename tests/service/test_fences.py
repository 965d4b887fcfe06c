from __future__ import annotations

import asyncio
import threading

import pytest

from ocsf_nft import config
from ocsf_nft.service import fences


async def test_a_look_that_has_begun_ends_before_its_watch_does() -> None:
    begun, may_end, told = threading.Event(), threading.Event(), threading.Event()

    def stand() -> None:
        begun.set()
        may_end.wait(10)

    async def look() -> None:
        await asyncio.to_thread(stand)
        told.set()

    watch = asyncio.ensure_future(fences._to_its_end(look()))
    await asyncio.to_thread(begun.wait, 10)
    watch.cancel()
    await asyncio.sleep(0.05)
    assert not watch.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert told.is_set()


@pytest.mark.parametrize(
    ("source", "transport", "wanted"),
    [
        ("auto", "auto", None),
        ("auto", "none", "none"),
        ("nflog", "auto", "nflog"),
        ("kmsg", "auto", "kmsg"),
        ("journal", "auto", "kmsg"),
        ("journal", "kmsg", "kmsg"),
    ],
)
def test_a_fence_logs_so_that_the_source_asked_for_can_read_it(
    source: str, transport: str, wanted: str | None
) -> None:
    sandbox = {"name": "a", "source": source, "transport": transport}
    read = config.parse({"sandbox": [sandbox]}, where="test")
    assert fences.wanted_transport(read.sandbox[0]) == wanted
