"""Earliest time at which the records of a batch can have been logged, as given by a source."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.sources import kmsg as kmsg_source
from ocsf_nft.sources.boot import boottime_ns
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.sources.nflog import source as nflog_source
from tests.kernel.attempts import GROUP, INTERNET4, PORT
from tests.kernel.journald import journald

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Batch

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

_MS: Final = 1_000_000
#: The journal's batches begin at least a second before their records.
_LONGEST_SEND_NS: Final = 900 * _MS


@pytest.mark.parametrize(
    ("transport", "exactness_ms"), [("nflog", 200), ("kmsg", 1), ("journal", 1500)]
)
async def test_logged_since_is_before_each_record_and_close_to_it(
    namespace: Namespace,
    sandbox: str,
    tmp_path: Path,
    transport: str,
    exactness_ms: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (nflog_source, kmsg_source):  # each reads until no record remains
        monkeypatch.setattr(module, "_BATCH_NS", 10**10)
    with journald(tmp_path) if transport == "journal" else nullcontext() as running:
        if transport == "nflog":
            source: Nflog | Kmsg | Journal = Nflog(namespace, GROUP)
        elif transport == "kmsg":
            source = Kmsg(frozenset({sandbox}))
        else:
            assert running is not None
            source = Journal(frozenset({sandbox}), directory=running.directory)
        async with source:
            batches = source.batches()
            asked_ns = rounds = 0
            while rounds < 3:
                before_ns = boottime_ns()
                namespace.call(_send)
                # Earlier records were read after that.
                read_ns = before_ns if transport == "journal" else asked_ns
                asked_ns = boottime_ns()
                batch = await _next(batches)
                if asked_ns - before_ns > _LONGEST_SEND_NS:  # this process was held up
                    continue
                rounds += 1
                assert read_ns - exactness_ms * _MS <= batch.since_ns <= before_ns
                await asyncio.sleep(0.05)


def _send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto(b"bypass", (INTERNET4, PORT))


async def _next(batches: AsyncIterator[Batch]) -> Batch:
    """Return the next batch that has a record."""
    async with asyncio.timeout(60):
        async for batch in batches:
            if batch.records:
                return batch
    raise AssertionError("the source has ended")
