from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import SourceError
from ocsf_nft.sources import kmsg as kmsg_source
from ocsf_nft.sources.boot import boot_id
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.sources.replay import Reader
from tests.kernel import kernel_log
from tests.kernel.attempts import GROUP, PRIVILEGED, UNPRIVILEGED, attempt, refused
from tests.kernel.reading import assert_nothing_left_open, dropped, joined, until, until_quiet

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

#: Tolerance for the kernel's tick, the time of reading and the difference of the clocks.
TOLERANCE_NS = 30_000_000


async def test_kmsg_and_nflog_give_equal_records_of_the_same_packets(
    namespace: Namespace, sandbox: str
) -> None:
    kinds = UNPRIVILEGED + PRIVILEGED
    total = 2 * len(kinds) + 2 * len(UNPRIVILEGED)
    async with Kmsg(frozenset({sandbox})) as kmsg, Nflog(namespace, GROUP) as nflog:
        before = time.time_ns()
        attempt(namespace, 0, 2, *(kind for kind, *_ in kinds))
        attempt(namespace, 1000, 2, *(kind for kind, *_ in UNPRIVILEGED))
        text = await until(kmsg.batches(), lambda batch: len(batch.records) >= total)
        netlink = await until(nflog.batches(), lambda batch: len(batch.records) >= total)
        after = time.time_ns()
    assert refused(namespace) == total
    assert text.records == netlink.records
    assert not text.gaps
    assert not text.rejected
    for record in text.records:
        assert before - TOLERANCE_NS <= record.time_ns <= after
        assert record.origin.identity.startswith(f"kmsg:{record.origin.sequence}:")
    # The raw data of an event gives the same record with the same identity.
    for record in text.records + netlink.records:
        (batch,) = Reader().batches([record.origin.raw.encode()])
        (again,) = batch.records
        assert again == record
        assert again.origin.identity == record.origin.identity
    times = [record.time_ns for record in text.records]
    assert times == sorted(times)


async def test_kmsg_record_has_the_kernels_time(namespace: Namespace, sandbox: str) -> None:
    async with Kmsg(frozenset({sandbox})) as source:
        batches = source.batches()
        attempt(namespace, 0, 1, "udp4")
        await until(batches, lambda batch: bool(batch.records))
        made = time.time_ns()
        attempt(namespace, 0, 1, "udp4")
        logged = time.time_ns()
        await asyncio.sleep(0.3)
        delayed = await until(batches, lambda batch: bool(batch.records))
    assert made - TOLERANCE_NS <= delayed.records[0].time_ns <= logged + TOLERANCE_NS
    assert delayed.records[0].received_ns >= logged + 200_000_000


async def test_kmsg_message_of_a_program_is_forged(namespace: Namespace, sandbox: str) -> None:
    line = f"ocsf-nft:{sandbox}:egress:IN= OUT=sb0 SRC=10.0.0.1 DST=1.1.1.1 LEN=40 PROTO=TCP"
    async with Kmsg(frozenset({sandbox})) as source:
        for priority in ("<4>", "", "<0>", "<12>"):
            kernel_log.write(priority + line)
        kernel_log.write(f"<4>ocsf-nft:{sandbox}-other:egress:IN= OUT=sb0 SRC=10.0.0.1")
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert len(read.records) == 1
    assert [reject.kind for reject in read.rejected] == ["forged"] * 4


async def test_kmsg_source_counts_dropped_records_after_an_overrun(
    namespace: Namespace, sandbox: str
) -> None:
    async with Kmsg(frozenset({sandbox})) as source:
        batches = source.batches()
        start = (await anext(batches)).cursor
        attempt(namespace, 0, 5_000, "flood")
        read = await until(batches, lambda batch: len(batch.records) + dropped(batch) >= 5_000)
        read = joined(read, await until_quiet(batches))
    assert start is not None
    assert read.cursor is not None
    logged = int(read.cursor.rsplit(":", 1)[1]) - int(start.rsplit(":", 1)[1])
    assert 0 < len(read.records) < 5_000
    # Other messages of the machine may be among the dropped or skipped ones.
    assert 5_000 - len(read.records) <= dropped(read) <= logged - len(read.records)
    assert refused(namespace) == 5_000


async def test_kmsg_source_resumes_without_missing_or_repeated_records(
    namespace: Namespace, sandbox: str
) -> None:
    names = frozenset({sandbox})
    async with Kmsg(names) as source:
        attempt(namespace, 0, 10, "udp4")
        first = await until(source.batches(), lambda batch: len(batch.records) >= 10)
    attempt(namespace, 0, 5, "udp6")
    async with Kmsg(names, first.cursor) as source:
        attempt(namespace, 0, 3, "tcp4")
        batches = source.batches()
        second = await until(batches, lambda batch: len(batch.records) >= 8)
        second = joined(second, await until_quiet(batches))
    async with Kmsg(names, second.cursor) as source:
        third = await until_quiet(source.batches())
    assert [record.protocol for record in second.records] == [17] * 5 + [6] * 3
    assert not third.records
    identities = [record.origin.identity for record in first.records + second.records]
    assert len(set(identities)) == len(identities) == 18
    assert not first.gaps + second.gaps + third.gaps


async def test_kmsg_cursor_advances_without_records(sandbox: str) -> None:
    async with Kmsg(frozenset({sandbox})) as source:
        batches = source.batches()
        start = await anext(batches)
        kernel_log.write("<14>of no interest")
        moved = await until(batches, lambda batch: batch.cursor is not None)
    assert start.cursor != moved.cursor


async def test_kmsg_cursor_of_another_boot_reads_all_of_this_boot(
    namespace: Namespace, sandbox: str
) -> None:
    names = frozenset({sandbox})
    attempt(namespace, 0, 2, "udp4")
    async with Kmsg(names, f"kmsg:{'0' * 32}:123456789") as source:
        read = await until(source.batches(), lambda batch: len(batch.records) >= 2)
    assert len(read.records) == 2
    # After the restore of a snapshot, the log ends before the position of the cursor.
    boot = boot_id()
    async with Kmsg(names, f"kmsg:{boot}:{10**15}") as source:
        again = await until(source.batches(), lambda batch: len(batch.records) >= 2)
    assert again.records == read.records


async def test_kmsg_source_finds_the_end_of_a_long_ring_in_several_steps(
    sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        kernel_log.write("<14>of no interest")
    monkeypatch.setattr(kmsg_source, "_SCAN_NS", 60_000_000_000)
    async with Kmsg(frozenset({sandbox})) as source:
        end = source._next
    monkeypatch.setattr(kmsg_source, "_BATCH_RECORDS", 2)
    async with Kmsg(frozenset({sandbox})) as source:
        assert source._next >= end
    # A ring that is written faster than read has no end: the search takes bounded time.
    monkeypatch.setattr(kmsg_source, "_SCAN_NS", 0)
    async with Kmsg(frozenset({sandbox})) as source:
        assert source._next == 0


async def test_kmsg_source_refuses_an_invalid_cursor() -> None:
    with pytest.raises(SourceError, match="is no position in the kernel log"):
        await Kmsg(cursor="s=1;i=2").__aenter__()


async def test_kmsg_source_leaves_nothing_open() -> None:
    await assert_nothing_left_open(Kmsg())
