"""Conversion of packet log records to events, one line of JSON each: the general code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.redacted import redacted_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.ocsf.mapper import Mapper
    from ocsf_nft.record import Batch, Record, Reject

    #: Events with line ends, valid until the next item is taken; or a rejected line.
    Converted: TypeAlias = "bytes | memoryview | Reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """Converter of log records to events of the OCSF version ``version``.

    ``prefixes`` decodes the log prefixes of other firewalls. Only records whose log prefix begins
    with ``selected`` are converted.
    """

    mapper: Mapper
    prefixes: Prefixes
    version: str
    selected: str = ""

    def converted(self, batch: Batch) -> Iterator[Converted]:
        """Yield the events of a batch, and its rejected lines."""
        attempts = (self.attempt(each) for each in batch.records if self.is_selected(each))
        events = (
            self.mapper.line(each, processed_ns=time.time_ns(), version=self.version)
            for each in attempts
        )
        yield b"".join(b"%b\n" % event for event in events)
        yield from batch.rejected

    def is_selected(self, record: Record) -> bool:
        """Return True if a record is converted."""
        return record.prefix.startswith(self.selected)

    def attempt(self, record: Record) -> Attempt:
        """Return what the event of a record is made from: without secrets, its prefix decoded."""
        return Attempt.of(self.prefixes.named(redacted_record(record)))
