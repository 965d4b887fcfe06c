"""Kernel log text to records, records to attempts, and to events."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from bench import dmesg, stage
from bench.subject import Subject
from ocsf_nft.attempt import Attempt
from ocsf_nft.flow import Count, Reading, RuleReading
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.sources.replay import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.record import Record

LINES: Final = 200_000
#: Enough lines for the rate of a secondary measurement.
_SOME_LINES: Final = 25_000
#: Whole programs read so many lines that they run this long, and their start has little weight.
_PROGRAM_S: Final = 3.0
#: As many flows as have separate events at the same time, and as one user may have at once.
_FLOWS: Final = 4_000
_FLOWS_OF_A_USER: Final = 1_000
_LEDGERS: Final = 10
_RULE: Final = "egress"
#: The counters of a fence that has refused no packet.
_NOTHING: Final = Reading(
    epochs={_RULE: "bench"},
    began_ns=0,
    ended_ns=0,
    began_ms=0,
    ended_ms=0,
    rules={
        _RULE: RuleReading(refused_before=Count(), refused=Count(), overflow=Count(), elements={})
    },
)
_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    what: str
    lines: int
    wall_s: float
    cpu_s: float

    def row(self) -> tuple[str, ...]:
        return (
            self.what,
            f"{self.lines:,}",
            f"{self.lines / self.wall_s:,.0f}",
            f"{self.cpu_s / self.lines * 1e6:.2f}",
        )


def run() -> Subject:
    """Measure all; raise BenchError if a program fails."""
    text = dmesg.usual(LINES)
    reading, records = _reading("text to record", text)
    odd, _ = _reading("text to record, every odd form", dmesg.every_form(_SOME_LINES))
    mapping = _mapping(records)
    measured = [reading, odd, mapping, *_accounting(records[0])]
    return Subject(
        title="Kernel log text (dmesg; TCP and UDP, IPv4 and IPv6), one core",
        columns=("what", "lines", "lines/s", "CPU µs a line"),
        rows=tuple(each.row() for each in measured),
        notes=("All by the general code, in Python. bench/converting.py measures whole programs.",),
    )


def _reading(what: str, text: bytes) -> tuple[_Measured, list[Record]]:
    """Read a whole text; return the measurement and its first records."""
    reader = Reader(boot_ns=int(datetime.fromisoformat(dmesg.BOOT).timestamp()) * 10**9)
    records: list[Record] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in reader.batches(_chunks(text)):
        if len(records) < _SOME_LINES:
            records += batch.records
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tally = reader.tally
    if tally.records != tally.lines:
        raise stage.BenchError(f"{tally.lines - tally.records} lines were not read as records")
    return _Measured(what=what, lines=tally.lines, wall_s=wall, cpu_s=cpu), records


def _mapping(records: Sequence[Record]) -> _Measured:
    mapper = Mapper(Context())
    wall, cpu = time.perf_counter(), time.process_time()
    for record in records:
        mapper.line(Attempt.of(record), processed_ns=time.time_ns())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return _Measured(what="record to event", lines=len(records), wall_s=wall, cpu_s=cpu)


def _accounting(record: Record) -> tuple[_Measured, _Measured]:
    """Process records of flows with separate events, then more records of the same flows."""
    users = range(_FLOWS // _FLOWS_OF_A_USER)
    records = [
        dataclasses.replace(record, rule=_RULE, uid=uid, destination_port=port)
        for uid in users
        for port in range(1, _FLOWS_OF_A_USER + 1)
    ]
    begin = record.time_ns
    spent = [[0.0, 0.0], [0.0, 0.0]]
    for _ in range(_LEDGERS):
        account = SandboxAccount(stage.SANDBOX, begun_ns=begin)
        for _ in account.observe(_NOTHING):
            pass
        for time_of, expected in zip(spent, (len(records), 0), strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            found = [account.record(each, begin) for each in records]
            time_of[0] += time.perf_counter() - wall
            time_of[1] += time.process_time() - cpu
            if sum(attempt is not None for attempt in found) != expected:
                raise stage.BenchError(
                    f"not {expected} attempts were emitted for {len(records)} records"
                )
    lines = _LEDGERS * len(records)
    new, more = (
        _Measured(what=what, lines=lines, wall_s=wall, cpu_s=cpu)
        for what, (wall, cpu) in zip(
            ("record to attempt, of a new flow", "record into an attempt's account"),
            spent,
            strict=True,
        )
    )
    return new, more


def _chunks(text: bytes) -> Iterator[bytes]:
    return (text[at : at + _CHUNK_BYTES] for at in range(0, len(text), _CHUNK_BYTES))
