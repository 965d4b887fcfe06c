"""Conformance of every kind of event to each version of OCSF, without errors and warnings.

There are two judges. Our validator compares the event with the tables of the schema. The other is
JSON Schema, generated from the same schema by an independent library.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchema, OcsfJsonSchemaEmbedded, get_ocsf_schema

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.flow import Count
from ocsf_nft.ocsf.bypass_events import fence_bypassed, gate_blocked
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import (
    attribution_degraded,
    collection_gap,
    events_dropped,
    fault,
    lifecycle,
    log_group_taken,
    records_dropped,
    records_not_counted,
)
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import at_version, line_at
from ocsf_nft.process import Process
from ocsf_nft.record import Gap
from tests.conformance import protections
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import (
    ALLOWED_ATTEMPTS,
    ALLOWED_RECORDS,
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    IDENTIFIED,
    LABELLED,
    NOW_NS,
    RECORDS,
    TIME_NS,
)
from tests.conformance.incidents import ENDED, FAN_OUTS, GOING_ON, fan_out_of, incident
from tests.conformance.shapes import of_each_shape
from tests.published_versions import PUBLISHED
from tests.sources import corpus_cases
from tests.strategies import ATTRIBUTIONS, HOSTILE_TEXT, TIMESTAMPS, records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.process import Attribution, Method
    from ocsf_nft.record import Record

    Judge = Callable[[Any, str], list[str]]

#: The attribution methods that replace a capture.
METHODS: tuple[Method, ...] = ("socket", "user")
CONTEXTS = {
    "a host": CONTEXT,
    "a container": CONTAINED,
    "labels": LABELLED,
    "an identity": IDENTIFIED,
    "nothing": Context(),
}


def attempt_events(context: Context) -> Iterator[tuple[str, Event]]:
    mapper = Mapper(context)
    kernel = [
        *(corpus_cases.record(message) for message in corpus_cases.MESSAGES),
        *(corpus_cases.nflog(data) for case in corpus_cases.cases() for data in case.payloads),
    ]
    assert len(kernel) > 140
    attempts = {
        **{name: Attempt.of(record) for name, record in (RECORDS | ALLOWED_RECORDS).items()},
        **{record.origin.raw: Attempt.of(record) for record in kernel},
        **ATTEMPTS,
        **ALLOWED_ATTEMPTS,
        **ATTRIBUTED,
    }
    for name, attempt in attempts.items():
        yield name, mapper.network_activity(attempt, processed_ns=NOW_NS)
        for event in mapper.dns_activities(attempt, processed_ns=NOW_NS):
            yield f"question of {name}", event
    incidents: list[tuple[str, Attempt | IncidentEnd]] = [*GOING_ON.items(), *ENDED.items()]
    for name, attempt in ATTRIBUTED.items():
        if attempt.aggregation is None:
            incidents.append(
                (name, replace(attempt, incident=incident(attribution=attempt.attribution)))
            )
    for name, found in incidents:
        finding = mapper.finding(found, processed_ns=NOW_NS)
        if finding is not None:
            yield f"finding of {name}", finding
    for name, each in FAN_OUTS.items():
        yield f"fan-out, {name}", fan_out(context, each, processed_ns=NOW_NS)
    for name, finding in protections.findings(context):
        yield f"protection, {name}", finding


def _tamperings(text: str) -> Iterator[Tampering]:
    whole = Process(
        pid=4711, name=text, path=f"/{text}", is_deleted=True, cmd_line=text, created_ns=TIME_NS
    )
    for process in (whole, None, Process(pid=1), Process(pid=1, name=text)):
        for since_ns, lasted_ns in ((TIME_NS, 10**10), (TIME_NS, 1), (TIME_NS, None), (None, None)):
            for given_up in (False, True):
                yield Tampering(
                    changes=text,
                    process=process,
                    since_ns=since_ns,
                    lasted_ns=lasted_ns,
                    given_up=given_up,
                )


def _fence(context: Context, text: str, after: FenceState, **facts: Any) -> Event:
    defaults: dict[str, Any] = {"before": FenceState.ACTIVE, "reason": text, "transport": text}
    return fence_state(
        context, sandbox=text, after=after, time_ns=TIME_NS, tables=["inet ocsf_nft", text],
        **(defaults | facts),
    )  # fmt: skip


def fence_events(context: Context) -> Iterator[tuple[str, Event]]:
    text = "why"
    for before, after in itertools.product(FenceState, FenceState):
        for reason in (None, text):
            event = _fence(context, text, after, before=before, reason=reason)
            yield f"{before} to {after}", event
    for after in FenceState:
        for number, tampering in enumerate(_tamperings(text)):
            event = _fence(context, text, after, transport="none", tampering=tampering)
            yield f"tampered with ({number}), to {after}", event
    for left in ((), (text,), (text,) * 20):
        yield f"surroundings, {len(left)}", protections.surroundings_event(context, left, text)
    for number in (1, 100_000):
        facts: dict[str, Any] = {
            "sandbox": text, "uplinks": (text, "eth0"), "frames": Count(number, 60 * number),
            "since_ns": TIME_NS, "until_ns": NOW_NS,
        }  # fmt: skip
        yield f"{number} past the fence", fence_bypassed(context, total=Count(number), **facts)
        yield f"{number} at the gate", gate_blocked(context, **facts)


def service_events(context: Context, text: str = "why") -> Iterator[tuple[str, Event]]:
    yield "start", lifecycle(context, activity="start", time_ns=TIME_NS)
    yield "stop", lifecycle(context, activity="stop", time_ns=TIME_NS)
    for method in METHODS:
        fell = attribution_degraded(context, method=method, reason=text, time_ns=TIME_NS)
        yield f"attribution by {method}", fell
    for dropped in (None, 0, 1, 655_090):
        for transport in ("nflog", "kmsg", "journal", "replay", "counters"):
            missing = Gap(
                transport=transport, reason=text, dropped=dropped, since_ns=TIME_NS, until_ns=NOW_NS
            )
            yield (
                f"{dropped} dropped by {transport}",
                records_dropped(context, missing, processed_ns=NOW_NS),
            )
        dropped_events = events_dropped(
            context, reason=text, number=dropped, since_ns=TIME_NS, until_ns=NOW_NS
        )
        yield f"{dropped} events dropped", dropped_events
    for packets in (0, 1, 2_034_112):
        event_of_a_pause = collection_gap(
            context, sandbox=text, packets=packets, since_ns=TIME_NS, until_ns=NOW_NS,
            reason=text, processed_ns=NOW_NS,
        )  # fmt: skip
        yield f"{packets} not read", event_of_a_pause
    for process in (None, Process(pid=42, name=text)):
        yield (
            "log group taken",
            log_group_taken(
                context, sandbox=text, taken=4001, group=7, process=process, time_ns=NOW_NS
            ),
        )
    for rules in ({text: 1}, {"egress": 2, "link": 7}):
        yield (
            "records not counted",
            records_not_counted(
                context, sandbox=text, rules=rules, since_ns=TIME_NS, until_ns=NOW_NS
            ),
        )
    for sandbox in (None, text):
        for is_cleared in (False, True):
            event_of_a_fault = fault(
                context, subject=text, cause=text, sandbox=sandbox, since_ns=TIME_NS,
                now_ns=NOW_NS, is_cleared=is_cleared,
            )  # fmt: skip
            yield f"fault of {sandbox}", event_of_a_fault


def as_json(event: Event) -> Any:
    return json.loads(event.to_json())


@pytest.fixture(scope="module")
def events() -> dict[str, Any]:
    """Return every event that the project emits, in the stored version of OCSF."""
    return {
        f"{where}, {name} ({number})": as_json(event)
        for where, context in CONTEXTS.items()
        for number, (name, event) in enumerate(
            (*attempt_events(context), *fence_events(context), *service_events(context))
        )
    }


@pytest.fixture(scope="module")
def representative_events(events: dict[str, Any]) -> dict[str, Any]:
    return of_each_shape(events)


def _at(version: str, event: Any) -> Any:
    return at_version(json.loads(json.dumps(event)), version)


@pytest.mark.parametrize("version", PUBLISHED)
def test_events_of_each_shape_have_no_fault(
    judge: Judge, version: str, events: dict[str, Any], representative_events: dict[str, Any]
) -> None:
    selected = representative_events
    if version in {PUBLISHED[0], PUBLISHED[-1]}:
        full = {name: each for name, each in events.items() if name.startswith("a container, ")}
        selected = representative_events | full
    faults = {
        name: found
        for name, event in selected.items()
        if (found := judge(_at(version, event), version))
    }
    assert not faults


@pytest.mark.parametrize("version", PUBLISHED)
def test_json_schema_accepts_events_of_each_shape(
    version: str, representative_events: dict[str, Any]
) -> None:
    embedded = OcsfJsonSchemaEmbedded(OcsfJsonSchema(get_ocsf_schema(version)))
    names = {one["uid"]: name for name, one in get_ocsf_schema(version)["classes"].items()}

    @functools.cache
    def validator(uid: int, profiles: tuple[str, ...]) -> jsonschema.Draft202012Validator:
        schema = embedded.get_class_schema(names[uid], list(profiles))
        return jsonschema.Draft202012Validator(schema)

    faults = {}
    for name, event in representative_events.items():
        converted = _at(version, event)
        profiles = tuple(converted["metadata"].get("profiles", ()))
        schema = validator(converted["class_uid"], profiles)
        if found := [error.message for error in schema.iter_errors(converted)]:
            faults[name] = found
    assert not faults
    assert {event["class_uid"] for event in representative_events.values()} == CLASSES.keys()


@settings(max_examples=100)
@given(
    record=records(),
    context=st.sampled_from(list(CONTEXTS.values())),
    version=st.sampled_from(PUBLISHED),
)
def test_event_of_any_record_has_no_fault(
    judge: Judge, record: Record, context: Context, version: str
) -> None:
    mapper, attempt = Mapper(context), Attempt.of(record)
    for event in (
        mapper.network_activity(attempt, processed_ns=NOW_NS),
        *mapper.dns_activities(attempt, processed_ns=NOW_NS),
    ):
        line = line_at(event.to_json(), version)
        assert line.decode().isprintable()
        assert judge(json.loads(line), version) == []


@settings(max_examples=100)
@given(record=records(), attribution=ATTRIBUTIONS, version=st.sampled_from(PUBLISHED))
def test_event_with_any_attribution_has_no_fault(
    judge: Judge, record: Record, attribution: Attribution, version: str
) -> None:
    attempt = replace(
        Attempt.of(record), attribution=attribution, incident=incident(attribution=attribution)
    )
    mapper = Mapper(CONTAINED)
    event = mapper.network_activity(attempt, processed_ns=NOW_NS)
    finding = mapper.finding(attempt, processed_ns=NOW_NS)
    assert finding is not None
    for each in (event, finding):
        line = line_at(each.to_json(), version)
        assert line.decode().isprintable()
        assert judge(json.loads(line), version) == []


@settings(max_examples=60)
@given(record=records(), now_ns=TIMESTAMPS)
def test_uid_of_a_record_is_the_same_in_every_run(record: Record, now_ns: int) -> None:
    first = Mapper(CONTEXT).network_activity(Attempt.of(record), processed_ns=now_ns)
    again = Mapper(Context()).network_activity(Attempt.of(record), processed_ns=NOW_NS)
    assert first.metadata.uid == again.metadata.uid
    assert first.metadata.correlation_uid == again.metadata.correlation_uid


def test_event_counts_packets_of_its_attempt() -> None:
    mapper = Mapper(CONTEXT)
    made = {
        name: mapper.network_activity(attempt, processed_ns=NOW_NS)
        for name, attempt in ATTEMPTS.items()
    }
    expected = {name: (attempt.packets,) * 2 for name, attempt in ATTEMPTS.items()}
    assert {name: (each.count, each.traffic.packets) for name, each in made.items()} == expected


@settings(max_examples=30)
@given(text=HOSTILE_TEXT, version=st.sampled_from(PUBLISHED))
def test_event_with_any_text_has_no_fault(judge: Judge, text: str, version: str) -> None:
    tampering = next(_tamperings(text))
    for event in (
        fan_out(CONTEXT, fan_out_of(sandbox=text), processed_ns=NOW_NS),
        *(_fence(CONTEXT, text, after, tampering=tampering) for after in FenceState),
        *(each for _, each in service_events(CONTEXT, text)),
    ):
        line = event.to_json()
        assert line.decode().isprintable()
        assert judge(at_version(json.loads(line), version), version) == []
