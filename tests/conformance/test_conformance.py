"""In each version of OCSF each kind of event has no error and no warning.

Two judges: our own, which walks the event beside the schema's tables, and JSON Schema, made of the
same schema by somebody else.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchema, OcsfJsonSchemaEmbedded, get_ocsf_schema

from ocsf_nft.attempt import Attempt, Ended
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fan_outs import fan_out
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.notices import (
    FenceState,
    Tampering,
    events_lost,
    fence_state,
    gap,
    lifecycle,
    unread,
)
from ocsf_nft.ocsf.versions import VERSIONS, at_version, line_at
from ocsf_nft.process import Process
from ocsf_nft.record import Gap
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import (
    ATTEMPTS,
    ATTEMPTS_LET_PASS,
    CONTAINED,
    CONTEXT,
    LET_PASS,
    NOW_NS,
    RECORDS,
    TIME_NS,
)
from tests.conformance.streaks import ENDED, FAN_OUTS, GOING_ON, fan_out_of, streak
from tests.sources import corpus_cases
from tests.strategies import ATTRIBUTIONS, HOSTILE_TEXT, MOMENTS, records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.ocsf.events import Event
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

    Judge = Callable[[Any, str], list[str]]

CONTEXTS = {"a host": CONTEXT, "a container": CONTAINED, "nothing": Context()}


def about_attempts(context: Context) -> Iterator[tuple[str, Event]]:
    mapper = Mapper(context)
    kernel = [
        *(corpus_cases.record(message) for message in corpus_cases.MESSAGES),
        *(corpus_cases.nflog(data) for case in corpus_cases.cases() for data in case.payloads),
    ]
    assert len(kernel) > 140
    attempts = {
        **{name: Attempt.of(record) for name, record in (RECORDS | LET_PASS).items()},
        **{record.origin.raw: Attempt.of(record) for record in kernel},
        **ATTEMPTS,
        **ATTEMPTS_LET_PASS,
        **ATTRIBUTED,
    }
    for name, attempt in attempts.items():
        yield name, mapper.network_activity(attempt, processed_ns=NOW_NS)
    streaks: list[tuple[str, Attempt | Ended]] = [*GOING_ON.items(), *ENDED.items()]
    for name, attempt in ATTRIBUTED.items():
        if attempt.merged is None:
            streaks.append((name, replace(attempt, streak=streak(attribution=attempt.attribution))))
    for name, found in streaks:
        finding = mapper.finding(found, processed_ns=NOW_NS)
        if finding is not None:
            yield f"finding of {name}", finding
    for name, each in FAN_OUTS.items():
        yield f"fan-out, {name}", fan_out(context, each, processed_ns=NOW_NS)


def _tamperings(text: str) -> Iterator[Tampering]:
    whole = Process(
        pid=4711, name=text, path=f"/{text}", is_deleted=True, cmd_line=text, created_ns=TIME_NS
    )
    for process in (None, Process(pid=1), Process(pid=1, name=text), whole):
        for since_ns, lasted_ns in ((None, None), (TIME_NS, None), (TIME_NS, 1), (TIME_NS, 10**10)):
            for given_up in (False, True):
                yield Tampering(
                    changes=text,
                    process=process,
                    since_ns=since_ns,
                    lasted_ns=lasted_ns,
                    given_up=given_up,
                )


def about_ourselves(context: Context, text: str = "why") -> Iterator[tuple[str, Event]]:
    for before in FenceState:
        for after in FenceState:
            for reason in (None, text):
                event = fence_state(
                    context, sandbox=text, before=before, after=after, time_ns=TIME_NS,
                    tables=["inet ocsf_nft", text], transport=text, reason=reason,
                )  # fmt: skip
                yield f"{before} to {after}", event
    for after in FenceState:
        for number, tampering in enumerate(_tamperings(text)):
            event = fence_state(
                context, sandbox=text, before=FenceState.STANDING, after=after, time_ns=TIME_NS,
                tables=["inet ocsf_nft"], reason=text, tampering=tampering,
            )  # fmt: skip
            yield f"tampered with ({number}), to {after}", event
    yield "start", lifecycle(context, activity="start", time_ns=TIME_NS)
    yield "stop", lifecycle(context, activity="stop", time_ns=TIME_NS, reason=text)
    for lost in (None, 0, 1, 655_090):
        for transport in ("nflog", "kmsg", "journal", "replay", "counters"):
            missing = Gap(
                transport=transport, reason=text, lost=lost, since_ns=TIME_NS, until_ns=NOW_NS
            )
            yield f"{lost} lost by {transport}", gap(context, missing, processed_ns=NOW_NS)
        never_had = events_lost(
            context, reason=text, number=lost, since_ns=TIME_NS, until_ns=NOW_NS
        )
        yield f"{lost} events lost", never_had
    for packets in (0, 1, 2_034_112):
        event_of_a_pause = unread(
            context, sandbox=text, packets=packets, since_ns=TIME_NS, until_ns=NOW_NS,
            reason=text, processed_ns=NOW_NS,
        )  # fmt: skip
        yield f"{packets} not read", event_of_a_pause


def as_json(event: Event) -> Any:
    return json.loads(event.to_json())


@pytest.fixture(scope="module", params=CONTEXTS)
def events(request: pytest.FixtureRequest) -> list[tuple[str, Any]]:
    context = CONTEXTS[request.param]
    both = (*about_attempts(context), *about_ourselves(context))
    return [(name, as_json(event)) for name, event in both]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_event_has_a_fault(judge: Judge, version: str, events: list[tuple[str, Any]]) -> None:
    faults = {}
    for name, event in events:
        if found := judge(at_version(json.loads(json.dumps(event)), version), version):
            faults[name] = found
    assert not faults


@pytest.mark.parametrize("version", VERSIONS)
def test_json_schema_has_nothing_against_one_of_each_shape(
    version: str, events: list[tuple[str, Any]]
) -> None:
    embedded = OcsfJsonSchemaEmbedded(OcsfJsonSchema(get_ocsf_schema(version)))
    names = {one["uid"]: name for name, one in get_ocsf_schema(version)["classes"].items()}
    validators: dict[Any, jsonschema.Draft202012Validator] = {}
    seen: set[Any] = set()
    for name, event in events:
        told = at_version(json.loads(json.dumps(event)), version)
        if (shape := shape_of(told)) in seen:
            continue
        seen.add(shape)
        profiles = tuple(told["metadata"].get("profiles", ()))
        key = (told["class_uid"], profiles)
        if key not in validators:
            schema = embedded.get_class_schema(names[told["class_uid"]], list(profiles))
            validators[key] = jsonschema.Draft202012Validator(schema)
        assert [error.message for error in validators[key].iter_errors(told)] == [], name
    assert len({shape[0] for shape in seen}) == len(names.keys() & {4001, 2004, 5019, 6002})


def shape_of(event: Any) -> Any:
    """Which attributes there are, and which ids they hold."""

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple(
                (key, value[key] if key.endswith("_id") else inside(value[key]))
                for key in value
                if key not in {"unmapped", "observables"}
            )
        return tuple(map(inside, value[:1])) if isinstance(value, list) else None

    return event["class_uid"], inside(event)


@settings(max_examples=100)
@given(record=records(), version=st.sampled_from(VERSIONS))
def test_no_record_has_an_event_with_a_fault(judge: Judge, record: Record, version: str) -> None:
    for context in CONTEXTS.values():
        event = Mapper(context).network_activity(Attempt.of(record), processed_ns=NOW_NS)
        line = line_at(event.to_json(), version)
        assert line.decode().isprintable()
        assert judge(json.loads(line), version) == []


@settings(max_examples=100)
@given(record=records(), attribution=ATTRIBUTIONS, version=st.sampled_from(VERSIONS))
def test_nothing_that_is_known_of_who_did_it_makes_a_fault(
    judge: Judge, record: Record, attribution: Attribution, version: str
) -> None:
    attempt = replace(
        Attempt.of(record), attribution=attribution, streak=streak(attribution=attribution)
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
@given(record=records(), now_ns=MOMENTS)
def test_the_same_record_has_the_same_uid_in_any_run(record: Record, now_ns: int) -> None:
    first = Mapper(CONTEXT).network_activity(Attempt.of(record), processed_ns=now_ns)
    again = Mapper(Context()).network_activity(Attempt.of(record), processed_ns=NOW_NS)
    assert first.metadata.uid == again.metadata.uid
    assert first.metadata.correlation_uid == again.metadata.correlation_uid


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_event_counts_the_packets_of_its_attempt(name: str) -> None:
    event = Mapper(CONTEXT).network_activity(ATTEMPTS[name], processed_ns=NOW_NS)
    assert event.count == event.traffic.packets == ATTEMPTS[name].packets


@settings(max_examples=30)
@given(text=HOSTILE_TEXT, version=st.sampled_from(VERSIONS))
def test_no_text_makes_a_fault(judge: Judge, text: str, version: str) -> None:
    scan = fan_out(CONTEXT, fan_out_of(sandbox=text), processed_ns=NOW_NS)
    for event in (scan, *(each for _, each in about_ourselves(CONTEXT, text))):
        line = event.to_json()
        assert line.decode().isprintable()
        assert judge(at_version(json.loads(line), version), version) == []
