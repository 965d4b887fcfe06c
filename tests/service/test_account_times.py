"""Times of an account: of its readings, and of the gaps that it reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocsf_nft.record import Batch
from ocsf_nft.service import account_loop
from tests.accounting.reading import NOW, SECOND, key, reading, record, tcp
from tests.conformance.corpus import as_allowed
from tests.service import keeping
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from ocsf_nft.flow import Reading


@dataclass
class _Counters:
    """Counters of one flow; a reading takes some seconds of the clock of the test."""

    packets: int = 1
    at_ns: int = NOW
    readings: int = 0
    took: float = 0.0
    now: float = 1000.0

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self) -> Reading:
        self.readings += 1
        self.now += self.took
        return reading({key(tcp()): self.packets}, self.at_ns)

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return round(self.now * SECOND)

    def time_ns(self) -> int:
        return self.at_ns


async def test_pause_is_reported_from_five_seconds_on(tmp_path: Path) -> None:
    for name, pause_ns, is_reported in (
        ("shorter", 5 * SECOND - 1, False),
        ("as long", 5 * SECOND, True),
    ):
        counters, sink = _Counters(), MemoryStore()
        for _ in range(2):
            async with keeping.running_account(counters, tmp_path / name, sink) as account:
                await account.close()
            counters.at_ns += pause_ns
        pauses = [event["activity_name"] for event in sink.of_class(6002)]
        assert pauses == ["Collection Gap"] * is_reported


async def test_rule_that_is_gone_causes_no_gap_at_each_reading(tmp_path: Path) -> None:
    class WithGuard(_Counters):
        def read(self) -> Reading:
            found = super().read()
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
    counters, sink = _Counters(), MemoryStore()
    for packets, reported in ((1, 0), (1, 0), (3, 1)):
        counters.packets = packets
        counters.at_ns += SECOND
        async with keeping.running_account(counters, tmp_path, sink, source="") as account:
            assert len(sink.of_class(6002)) == reported
            counters.at_ns += SECOND
            await account.close()
        assert len(sink.of_class(6002)) == reported
    assert sink.of_class(6002)[0]["count"] == 2


async def test_slow_counters_are_read_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = _Counters()
    monkeypatch.setattr(account_loop, "time", counters)
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        for took, pause in ((0.01, 0.5), (0.05, 0.5), (0.06, 0.6), (0.2, 2.0), (0.3, 2.0)):
            counters.took = took
            await account._observe()
            assert round(account._wait_seconds, 6) == pause
            counters.now += 7
            assert round(account.idle_seconds, 6) == 7


async def test_records_of_the_other_mode_cause_at_most_two_readings_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = _Counters()
    monkeypatch.setattr(account_loop, "time", counters)
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        await account.take(Batch(records=(as_allowed(record(tcp())),)))
        for number, (later, readings) in enumerate(((0.499, 0), (0.001, 1), (0.499, 0))):
            before = counters.readings
            counters.now += later
            await account.take(Batch(records=(as_allowed(record(tcp(), number)),)))
            assert counters.readings - before == readings


async def test_position_stays_if_a_batch_has_none(tmp_path: Path) -> None:
    async with keeping.running_account(_Counters(), tmp_path, MemoryStore()) as account:
        one = Batch(records=(record(tcp()),), cursor="7")
        await account.take(one)
        await account.take(replace(one, cursor=None))
        assert account.position == "7"
    async with keeping.running_account(_Counters(), tmp_path, MemoryStore()) as account:
        assert account.position == "7"
