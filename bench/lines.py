"""Events to store and to deliver: real ones, from the corpus's packets, all different."""

from __future__ import annotations

import time
from datetime import datetime

from bench import dmesg
from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context, this_host
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.sources.replay import Reader


def lines(number: int) -> list[bytes]:
    """Return a number of events, as a run writes them."""
    reader = Reader(boot_ns=int(datetime.fromisoformat(dmesg.BOOT).timestamp()) * 10**9)
    mapper = Mapper(Context(host=this_host()))
    return [
        mapper.line(Attempt.of(record), processed_ns=time.time_ns())
        for batch in reader.batches([dmesg.usual(number)])
        for record in batch.records
    ]


def mean_bytes(events: list[bytes]) -> str:
    """Return the mean length of events, as a text for a table's title."""
    return f"{sum(map(len, events)) / len(events) / 1000:.1f} kB each"
