"""Target: events about packets of hostile log lines; each must be valid OCSF on one line."""

from __future__ import annotations

import datetime as dt
from functools import cache
from typing import Final

import orjson

from ocsf_nft.attempt import Attempt
from ocsf_nft.log_prefixes import Prefixes
from ocsf_nft.ocsf.lean import lean_line
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.redacted import redacted_record
from ocsf_nft.sources.replay.source import Reader
from ocsf_nft.validation.validate_event import EventValidator
from tests.conformance.corpus import CONTEXT, NOW_NS
from tests.fuzz import parts
from tests.fuzz.target import Target, require
from tests.fuzz.targets import kernel_log

_PREFIXES: Final = Prefixes()
_VERSION: Final = "1.8.0"


@cache
def _mapper() -> Mapper:
    return Mapper(CONTEXT)


@cache
def _validator() -> EventValidator:
    return EventValidator()


def _events(data: bytes) -> None:
    reader = Reader(
        boot_ns=NOW_NS - 10**15, unstamped_ns=NOW_NS, now_ns=lambda: NOW_NS, zone=dt.UTC
    )
    for batch in reader.batches([data]):
        for record in batch.records:
            named = redacted_record(_PREFIXES.named(record))
            line = _mapper().line(Attempt.of(named), processed_ns=NOW_NS, version=_VERSION)
            require(line.decode().isprintable(), "an event is not one printable line")
            orjson.loads(lean_line(line))
            errors = [
                fault
                for fault in _validator().faults(orjson.loads(line))
                if fault.severity == "error"
            ]
            require(not errors, f"an event is no valid OCSF: {errors[:2]}")


TARGETS: Final = (
    Target(
        name="event",
        parse=_events,
        seeds=kernel_log._files,
        parts=parts.lines,
        hostile=kernel_log._WORDS,
        limit=16_384,
        share=0.7,
    ),
)
