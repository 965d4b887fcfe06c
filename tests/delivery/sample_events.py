"""Events of every kind, in the form in which a sink gets them."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import STORED, line_at
from tests.conformance import protections
from tests.conformance.attributed import ATTRIBUTED, PROCESSES
from tests.conformance.corpus import (
    ALLOWED_ATTEMPTS,
    ALLOWED_RECORDS,
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    NOW_NS,
    RECORDS,
    TIME_NS,
)
from tests.conformance.incidents import ENDED, FAN_OUTS, GOING_ON
from tests.conformance.shapes import of_each_shape
from tests.golden.situations import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.event_base import Event

#: Classes of OCSF: Network Activity, and Detection Finding.
REFUSED = 4001
FOUND = 2004


@cache
def messages(version: str) -> tuple[Message, ...]:
    """Return each event of the corpus in the stored version; in another one, a few of each shape.

    Texts and numbers are the same in each version. Only the set of attributes differs.
    """
    events = _stored()
    if version == STORED:
        return tuple(message_of(line) for line in events)
    few = of_each_shape({line: orjson.loads(line) for line in events})
    return tuple(message_of(line_at(line, version)) for line in few)


@cache
def _stored() -> tuple[bytes, ...]:
    """Return the corpus and the golden events, in the stored version."""
    events = chain(_of_attempts(), _of_findings(), _of_fences())
    golden = (orjson.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json")))
    return (
        *(event.to_json() for event in events),
        *(orjson.dumps(each) for each in golden if each["metadata"]["version"] == STORED),
    )


def message_of(line: bytes) -> Message:
    return Message(uid=orjson.loads(line)["metadata"]["uid"], line=line)


def packets(count: int, *, since_ms: int = TIME_NS // 1_000_000) -> list[Message]:
    """Return Network Activity events, one a second; each counts as many packets as its number."""
    mapper = Mapper(CONTEXT)
    line = mapper.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS).to_json()
    event: dict[str, Any] = orjson.loads(line)
    return [
        message_of(
            orjson.dumps(
                event
                | {"time": since_ms + number * 1000, "count": number}
                | {"metadata": event["metadata"] | {"uid": f"uid-{since_ms}-{number}"}}
            )
        )
        for number in range(count)
    ]


def _of_attempts() -> Iterator[Event]:
    attempts = [
        *(Attempt.of(record) for record in chain(RECORDS.values(), ALLOWED_RECORDS.values())),
        *ATTEMPTS.values(),
        *ALLOWED_ATTEMPTS.values(),
        *ATTRIBUTED.values(),
    ]
    for context in (CONTEXT, CONTAINED):
        mapper = Mapper(context)
        for attempt in attempts:
            yield mapper.network_activity(attempt, processed_ns=NOW_NS)
            yield from mapper.dns_activities(attempt, processed_ns=NOW_NS)


def _of_findings() -> Iterator[Event]:
    mapper = Mapper(CONTAINED)
    incidents: list[Attempt | IncidentEnd] = [*GOING_ON.values(), *ENDED.values()]
    for incident in incidents:
        if (finding := mapper.finding(incident, processed_ns=NOW_NS)) is not None:
            yield finding
    for each in FAN_OUTS.values():
        yield fan_out(CONTAINED, each, processed_ns=NOW_NS)
    for _, finding in protections.findings(CONTAINED):
        yield finding


def _of_fences() -> Iterator[Event]:
    for process in PROCESSES.values():
        tampering = Tampering(
            changes="a rule was deleted",
            process=process,
            since_ns=TIME_NS,
            lasted_ns=1,
            given_up=True,
        )
        yield fence_state(
            CONTEXT, sandbox="sb1", before=FenceState.ACTIVE, after=FenceState.DEGRADED,
            time_ns=TIME_NS, tables=["inet ocsf_nft"], transport="nflog", reason="why",
            tampering=tampering,
        )  # fmt: skip
