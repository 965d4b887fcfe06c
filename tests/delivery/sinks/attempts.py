"""Real events for sinks: blocked attempts as the mapper converts them."""

from __future__ import annotations

from dataclasses import replace

import orjson

from ocsf_nft.attempt import Attempt
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS, TIME_NS

_MAPPER = Mapper(CONTEXT)
_KINDS = ("tcp4", "udp6 quic", "icmp echo", "link arp")


def attempts(number: int, *, poison: frozenset[int] = frozenset()) -> list[Message]:
    """Return messages of different attempts; those at ``poison`` hold that word."""
    return [attempt(each, "poison" if each in poison else "curl") for each in range(number)]


def attempt(number: int, detail: str = "curl") -> Message:
    record = RECORDS[_KINDS[number % len(_KINDS)]]
    origin = replace(record.origin, identity=f"kmsg:boot:{number}", sequence=number)
    record = replace(
        record,
        origin=origin,
        time_ns=TIME_NS + number * 1_000_000,
        details={**record.details, "note": detail},
    )
    event = _MAPPER.network_activity(Attempt.of(record), processed_ns=NOW_NS)
    line = event.to_json()
    return Message(orjson.loads(line)["metadata"]["uid"], line)
