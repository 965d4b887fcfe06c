"""Times of packets that only the capture of their sender knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.process import Process
from tests.conformance.attributed import done_by
from tests.flows.reading import NOW, SECOND, key, record, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_loop import Given, batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record


class Sending(FallbackChain):
    """Fallback chain in which process 1 sent the packet of each record at a given time."""

    def __init__(self, sent_ns: int) -> None:
        super().__init__()
        self.sent_ns = sent_ns

    async def attributions(
        self, attached: AttachedNamespace | None, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        assert (attached, since_ns) == (None, NOW)
        return [replace(done_by(Process(pid=1)), sent_ns=self.sent_ns) for _ in records]


async def test_late_record_names_no_sender_of_a_later_packet(tmp_path: Path) -> None:
    counters, sink, fallback_chain = Given(), MemoryStore(), Sending(NOW + SECOND // 4)
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        counters.counts = {key(tcp()): 4}
        await account._observe()
        await account._report_due()
        read_ns = counters.at_ns + SECOND // 4
        await account.take(batch(record(tcp(), at_ns=read_ns)))
        counters.counts = {key(tcp()): 5}
        await account.close()
    first, later = sink.of_class(4001)
    assert (first["count"], later["count"]) == (4, 1)
    assert "process" not in later["actor"]


async def test_event_has_the_time_when_its_packet_was_sent(tmp_path: Path) -> None:
    sink, fallback_chain = MemoryStore(), Sending(NOW + SECOND // 4)
    async with keeping.running_account(Given(), tmp_path, sink, fallback_chain) as account:
        await account.take(batch(record(tcp(1), at_ns=NOW + SECOND)))
        # This record's source knows the time of the log message.
        logged = replace(record(tcp(2), 2, NOW + SECOND), received_ns=NOW + 2 * SECOND)
        await account.take(batch(logged))
        # The clock was set back meanwhile.
        await account.take(batch(record(tcp(3), 3, at_ns=NOW)))
    times_ms = [event["time"] - NOW // 1_000_000 for event in sink.of_class(4001)]
    assert times_ms == [250, 1000, 0]
