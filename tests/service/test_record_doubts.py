"""Doubts about the log records of a sandbox, after some of them were forged."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.errors import DeliveryError
from ocsf_nft.ocsf.enums import Confidence
from ocsf_nft.process import Attribution, ConfidenceLevel, Method, Process, Seen
from ocsf_nft.record import Batch
from ocsf_nft.service import counter_mismatch
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.record_doubts import RecordDoubts
from tests.conformance.corpus import NOW_NS, RECORDS
from tests.flows.kernel_model import RULE
from tests.flows.reading import NOW, SECOND, key, reading, record, tcp
from tests.ocsf.mapped import MAPPER
from tests.service import keeping
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.flow import Reading
    from ocsf_nft.service.account_loop import AccountLoop

_BY = Attribution(
    method="socket", confidence="medium", reason="it has the socket", process=Process(pid=7)
)


async def _store(_change: object) -> None:
    raise AssertionError("nothing is to be stored")


def _doubts(until_ns: int) -> RecordDoubts:
    doubts = RecordDoubts("sb1", Reporter(_store, host=None))
    doubts.until_ns = until_ns
    return doubts


@pytest.mark.parametrize("method", ["socket", "user", "capture"])
@pytest.mark.parametrize("confidence", ["high", "medium", "low", None])
def test_attribution_is_weakened_while_records_are_doubted(
    method: Method, confidence: ConfidenceLevel | None
) -> None:
    known = replace(_BY, method=method, confidence=confidence)
    assert _doubts(0).weakened(known) == known
    weakened = _doubts(time.monotonic_ns() + 10**12).weakened(known)
    if (method, confidence) == ("capture", "high"):
        assert weakened == known
        return
    assert (weakened.confidence, weakened.process) == ("low", None)
    assert weakened.seen == (Seen(process=Process(pid=7)),)
    assert weakened.is_doubted


@pytest.mark.parametrize(
    ("is_doubted", "expected"), [(True, Confidence.LOW), (False, Confidence.HIGH)]
)
def test_event_of_a_doubted_record_has_a_low_confidence(
    is_doubted: bool, expected: Confidence
) -> None:
    attempt = Attempt.of(RECORDS["tcp4"], replace(_BY, is_doubted=is_doubted))
    event = MAPPER.network_activity(attempt, processed_ns=NOW_NS)
    assert event.confidence_id == expected


@dataclass
class _Fence:
    """Counters of a fence that logs each packet it refuses; they outlast a run."""

    refused: int = 1
    at_ns: int = NOW

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self, _settled: object = None) -> Reading:
        self.at_ns += SECOND // 2
        found = reading({key(tcp()): self.refused}, self.at_ns)
        rules = {RULE: replace(found.rules[RULE], logged=self.refused)}
        return replace(found, began_ns=self.at_ns - 1, rules=rules)


async def _take(account: AccountLoop, *ports: int) -> None:
    records = tuple(record(tcp(port)) for port in ports)
    await account.take(Batch(records=records, since_ns=NOW))


async def _read(account: AccountLoop) -> None:
    for _ in range(4):
        await account._observe(is_complete=True)
        await account._report_and_plan()


def _events(sink: MemoryStore) -> list[dict[str, Any]]:
    return [
        each for each in sink.events
        if each["metadata"].get("event_code") == "records-not-counted"
    ]  # fmt: skip


async def test_forged_records_are_reported_once_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter_mismatch, "_SETTLE_SECONDS", 0.0)
    fence, sink = _Fence(), MemoryStore()
    async with keeping.running_account(fence, tmp_path, sink, source="") as account:
        await _take(account, 80, 443, 444, 445)
        await _read(account)
        assert [each["count"] for each in _events(sink)] == [3]
        await account.close()
    for _ in range(3):
        async with keeping.running_account(fence, tmp_path, sink, source="") as account:
            await _read(account)
            assert account._doubts.until_ns == 0, "its real attempts keep their process"
            assert account.mismatch.fault is None
            (balance,) = await account.close()
        assert balance.counter_mismatch == -3
    assert [each["count"] for each in _events(sink)] == [3]
    async with keeping.running_account(fence, tmp_path, sink, source="") as account:
        await _take(account, 446)
        await _read(account)
    assert [each["count"] for each in _events(sink)] == [3, 1]


async def test_forged_records_without_an_event_are_reported_after_a_kill(
    tmp_path: Path,
) -> None:
    """One event a minute is emitted at most: a kill may come before it."""
    fence, sink = _Fence(), MemoryStore()
    async with keeping.opened_store(tmp_path) as store:
        killed = keeping.running_account(fence, tmp_path, sink, source="", store=store)
        async with killed as account:
            await _take(account, 80, 443)
            await _read(account)
            await _take(account, 444, 445)
            await _read(account)
            # It ends without close().
    assert [each["count"] for each in _events(sink)] == [1]
    async with keeping.running_account(fence, tmp_path, sink, source="") as account:
        await _read(account)
    assert [each["count"] for each in _events(sink)] == [1, 2]


async def test_forged_records_are_reported_if_their_event_was_not_stored(
    tmp_path: Path,
) -> None:
    fence, sink, failing = _Fence(), MemoryStore(), MemoryStore()
    async with keeping.running_account(fence, tmp_path, failing, source="") as account:
        await _take(account, 80, 443)
        await account._report_due()
        failing.fails = True
        with pytest.raises(DeliveryError):
            await _read(account)
    async with keeping.running_account(fence, tmp_path, sink, source="") as account:
        await _read(account)
    assert [each["count"] for each in _events(sink)] == [1]
