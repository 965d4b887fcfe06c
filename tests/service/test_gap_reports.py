"""Tests of the gaps that an account reports."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.flows.reading import SECOND
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_times import Counters

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.flow import Reading


async def test_pause_is_reported_from_five_seconds_on(tmp_path: Path) -> None:
    for name, pause_ns, is_reported in (
        # An idle sandbox was perhaps read for the last time 30 s before the end, and the time of a
        # reading is stored once a minute.
        ("shorter", 95 * SECOND - 1, False),
        ("as long", 95 * SECOND, True),
    ):
        counters, sink = Counters(), MemoryStore()
        for _ in range(2):
            async with keeping.running_account(counters, tmp_path / name, sink) as account:
                await account.close()
            counters.at_ns += pause_ns
        pauses = [event["activity_name"] for event in sink.of_class(6002)]
        assert pauses == ["Collection Gap"] * is_reported


async def test_rule_that_is_gone_causes_no_gap_at_each_reading(tmp_path: Path) -> None:
    class WithGuard(Counters):
        def read(self, settled: frozenset[str]) -> Reading:
            found = super().read(settled)
            (rule,) = found.rules.values()
            more = {"guard": rule} if self.readings == 1 else {}
            epochs = {**found.epochs, **dict.fromkeys(more, "boot:2")}
            return replace(found, rules={**found.rules, **more}, epochs=epochs)

    counters, sink = WithGuard(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        for _ in range(4):
            await account._observe()
            counters.at_ns += 4 * SECOND
    assert sink.of_class(6002) == []


async def test_pause_of_a_source_without_a_position_is_reported_if_packets_came(
    tmp_path: Path,
) -> None:
    counters, sink = Counters(), MemoryStore()
    for packets, reported in ((1, 0), (1, 0), (3, 1)):
        counters.packets = packets
        counters.at_ns += SECOND
        async with keeping.running_account(counters, tmp_path, sink, source="") as account:
            assert len(sink.of_class(6002)) == reported
            counters.at_ns += SECOND
            await account.close()
        assert len(sink.of_class(6002)) == reported
    assert sink.of_class(6002)[0]["count"] == 2


async def test_rule_that_is_gone_causes_no_gap_at_each_start(tmp_path: Path) -> None:
    class Two(Counters):
        def read(self, settled: frozenset[str]) -> Reading:
            found = super().read(settled)
            (rule,) = found.rules.values()
            more = {"guard": rule} if self.has_guard else {}
            return replace(
                found,
                rules={**found.rules, **more},
                epochs={**found.epochs, **dict.fromkeys(more, "boot:2")},
            )

        has_guard = True

    counters, sink = Two(), MemoryStore()
    for number in range(4):
        counters.has_guard = number == 0
        async with keeping.running_account(counters, tmp_path, sink) as account:
            await account.close()
        counters.at_ns += 60 * SECOND
    assert sink.of_class(6002) == []


async def test_new_counters_are_a_finding_only_if_no_one_watched_their_creation(
    tmp_path: Path,
) -> None:
    class Renewed(Counters):
        epoch = "boot:2"

        def read(self, settled: frozenset[str]) -> Reading:
            found = super().read(settled)
            return replace(found, epochs=dict.fromkeys(found.epochs, self.epoch))

    counters, sink = Renewed(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.epoch = "boot:3"
        await account._observe()
        await account.close()
        assert len(sink.of_class(6002)) == 1
        # The change of the fence is a finding.
        assert sink.of_class(2004) == []
    counters.epoch = "boot:4"
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    assert len(sink.of_class(6002)) == 2
    (finding,) = sink.of_class(2004)
    assert finding["metadata"]["event_code"] == "collection-finding"
