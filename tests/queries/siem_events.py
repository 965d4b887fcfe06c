"""Events of every kind, as in a SIEM: of several hosts, some duplicated, in random order."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import random
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.object_storage import Directory
from ocsf_nft.delivery.parquet_layout import Layout
from ocsf_nft.delivery.sinks.parquet import Parquet
from ocsf_nft.flow import Key
from ocsf_nft.flows.incidents import extend_incident
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fence_state_events import FenceState, SandboxEnd, fence_state
from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import (
    collection_gap,
    events_dropped,
    lifecycle,
    records_dropped,
)
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.record import Gap
from tests.conformance.attributed import ATTRIBUTED, PROCESSES, done_by
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    HOST,
    NOW_NS,
    RECORDS,
    TIME_NS,
)
from tests.conformance.incidents import FAN_OUTS
from tests.delivery.sample_events import message_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.record import Record, Transport

#: The versions and the forms of the events for the queries: they have all attributes that the
#: queries use.
VERSIONS: Final = ("1.8.0", "1.1.0", "1.8.0 lean", "1.1.0 lean")
PARQUET: Final = ("1.8.0 parquet", "1.4.0 parquet")
#: jq counts in doubles.
EXACT: Final = 1 << 53

_SECOND: Final = 1_000_000_000
#: Another firewall's log of a packet into its sandbox.
_FOREIGN_INBOUND: Final = replace(
    RECORDS["foreign, of a sandbox"], in_interface="sb0", out_interface=None
)
_CONTEXTS: Final = (
    CONTAINED,
    replace(CONTEXT, host=replace(HOST, hostname="host-2")),
    Context(),
)
_MAPPERS: Final = tuple(map(Mapper, _CONTEXTS))
_TRANSPORTS: Final[tuple[Transport, ...]] = ("nflog", "kmsg", "counters")


def _single_attempts() -> Iterator[Event]:
    """Yield attempts without a finding, seven minutes apart."""
    attempts = (
        *map(Attempt.of, (*RECORDS.values(), _FOREIGN_INBOUND)),
        *ATTEMPTS.values(),
        *ATTRIBUTED.values(),
    )
    mappers = itertools.cycle(_MAPPERS)
    for number, (attempt, mapper) in enumerate(zip(attempts, mappers, strict=False)):
        later_ns = number * 420 * _SECOND
        yield mapper.network_activity(
            replace(
                attempt,
                record=_with_identity(attempt.record, f"alone/{number}", later_ns),
                start_ns=attempt.start_ns + later_ns,
                end_ns=attempt.end_ns + later_ns,
            ),
            processed_ns=NOW_NS,
        )


def _with_identity(record: Record, identity: str, later_ns: int) -> Record:
    return replace(
        record,
        time_ns=record.time_ns + later_ns,
        origin=replace(record.origin, identity=identity),
    )


def _incident(name: str, mapper: Mapper, since_s: int, packets: tuple[int, ...]) -> Iterator[Event]:
    """Yield attempts of one flow, a minute apart, and their findings; zero packets end them."""
    going_on: IncidentEnd | None = None
    for number, each in enumerate(packets):
        if each == 0 and going_on is not None:
            found: Attempt | IncidentEnd = going_on
        else:
            later_ns = (since_s + number * 60) * _SECOND
            identity = f"{name}/{since_s}/{number}/{_MAPPERS.index(mapper)}"
            attempt = Attempt(
                record=_with_identity(RECORDS[name], identity, later_ns),
                packets=each,
                bytes=None,
                start_ns=TIME_NS + later_ns,
                end_ns=TIME_NS + later_ns + 59 * _SECOND,
                attribution=done_by(PROCESSES["all of it"]),
            )
            going_on = extend_incident(going_on, Key("flows4", b"\x01"), attempt, mapper.is_finding)
            found = attempt = replace(attempt, incident=going_on.incident)
            yield mapper.network_activity(attempt, processed_ns=NOW_NS)
        finding = mapper.finding(found, processed_ns=NOW_NS)
        if finding is not None:
            yield finding


def _incidents() -> Iterator[Event]:
    for name in ("tcp4", "tcp6", "metadata4", "udp dns", "forward", "gre", "ingress"):
        for mapper in _MAPPERS:
            yield from _incident(name, mapper, 7200, (4, 40, 400, 0))
            yield from _incident(name, mapper, 86_400, (1, 8, 1, *range(1, 15)))


def _fan_outs() -> Iterator[Event]:
    for number, (name, found) in enumerate(FAN_OUTS.items()):
        stage, _, what = name.partition(", ")
        if stage == "ended" and number % 2:
            continue
        packets = {"begun": 0, "goes on": 10, "ended": 10}[stage] + found.packets
        yield fan_out(CONTEXT, replace(found, identity=what, packets=packets), processed_ns=NOW_NS)


def _operational_events() -> Iterator[Event]:
    pairs = list(itertools.product(FenceState, FenceState))
    for number, (context, sandbox) in enumerate(itertools.product(_CONTEXTS, ("sb1", "sb2", "x"))):
        for later, (before, after) in enumerate(pairs[: len(pairs) - number]):
            yield fence_state(
                context,
                sandbox=sandbox,
                before=before,
                after=after,
                # Two of one host within a millisecond; no two hosts at the same nanosecond.
                time_ns=TIME_NS + (later + 1) // 2 * _SECOND + number,
                tables=["inet ocsf_nft"],
                transport="nflog",
                reason=None if after is FenceState.ACTIVE else "why",
            )
    for is_requested in (False, True):
        yield fence_state(
            CONTEXT,
            sandbox=f"ended {is_requested}",
            before=FenceState.ACTIVE,
            after=FenceState.ABSENT,
            time_ns=NOW_NS,
            tables=["inet ocsf_nft"],
            transport="nflog",
            end=SandboxEnd(
                description="has ended", refused=1, allowed=0, is_requested=is_requested
            ),
        )
    for number, context in enumerate(_CONTEXTS):
        yield lifecycle(context, activity="start", time_ns=TIME_NS + number)
        yield lifecycle(context, activity="stop", time_ns=NOW_NS + number)
    for dropped, transport in itertools.product((None, 0, 1000), _TRANSPORTS):
        missing = Gap(
            transport=transport,
            reason="overrun",
            dropped=dropped,
            since_ns=TIME_NS,
            until_ns=NOW_NS,
        )
        yield records_dropped(CONTEXT, missing, processed_ns=NOW_NS)
    for known in (None, 3):
        yield events_dropped(
            CONTEXT, reason="a sink was down", number=known, since_ns=TIME_NS, until_ns=NOW_NS
        )
    for packets in (0, 1, 2_034_112):
        yield collection_gap(
            CONTEXT,
            sandbox="sb1",
            packets=packets,
            since_ns=TIME_NS,
            until_ns=NOW_NS,
            reason="the service was stopped",
            processed_ns=NOW_NS,
        )


@cache
def unique_events() -> list[dict[str, Any]]:
    """Return the events without duplicates, in the newest version; callers don't change them."""
    events = (*_single_attempts(), *_incidents(), *_fan_outs(), *_operational_events())
    found = [json.loads(event.to_json()) for event in events]
    assert len({event["metadata"]["uid"] for event in found}) == len(found)
    return found


def write(folder: Path, events: list[dict[str, Any]], form: str) -> None:
    """Write the events in the form of a version, every third one twice.

    ``form`` is one of :data:`VERSIONS`, for ``events.jsonl``, or of :data:`PARQUET`.
    """
    version, _, detail = form.partition(" ")
    found = [at_version(copy.deepcopy(event), version) for event in events]
    if detail == "lean":
        found = list(map(lean, found))
    for event in found[::3]:
        again = copy.deepcopy(event)
        again["metadata"]["processed_time"] += 60_000
        found.append(again)
    random.Random(7).shuffle(found)
    lines = list(map(orjson.dumps, found))
    if detail == "parquet":
        asyncio.run(write_parquet(folder, lines, version))
    else:
        (folder / "events.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


async def write_parquet(folder: Path, lines: Iterable[bytes], version: str) -> None:
    """Write events as the sink ``parquet`` does."""
    sink = Parquet(
        storage=Directory(path=folder),
        columns=columns(version),
        layout=Layout("ocsf-nft", version, "eu-west-1", "external"),
    )
    async with sink:
        await sink.deliver(list(map(message_of, lines)))
