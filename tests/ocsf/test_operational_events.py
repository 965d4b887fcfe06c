from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.ocsf.operational_events import (
    attribution_degraded,
    collection_gap,
    events_dropped,
    fault,
    lifecycle,
    records_dropped,
)
from ocsf_nft.record import Gap
from tests.conformance.corpus import CONTEXT, NOW_NS, TIME_NS
from tests.ocsf.test_fence_state_events import state_event

if TYPE_CHECKING:
    from ocsf_nft.ocsf.events import ApplicationLifecycle

OVERRUN = Gap(
    transport="kmsg",
    reason="the kernel log was overrun",
    dropped=3,
    since_ns=TIME_NS,
    until_ns=TIME_NS + 2_000_000_000,
)


def test_dropped_records_have_count_start_and_end() -> None:
    event = json.loads(records_dropped(CONTEXT, OVERRUN, processed_ns=NOW_NS).to_json())
    assert event["type_uid"] == 600299
    assert event["type_name"] == "Application Lifecycle: Other"
    assert event["activity_name"] == "Records Dropped"
    assert event["count"] == 3
    assert event["duration"] == event["end_time"] - event["start_time"] == 2000
    assert event["severity"] == "High"
    assert event["message"] == (
        "3 records were dropped on the way from the kernel (kmsg): the kernel log was overrun."
    )


def test_gap_without_a_number_has_no_count() -> None:
    dropped = Gap(
        transport="journal", reason="rotated", dropped=None, since_ns=TIME_NS, until_ns=NOW_NS
    )
    event = records_dropped(CONTEXT, dropped, processed_ns=NOW_NS)
    assert event.count is None
    assert event.message.startswith("An unknown number of records was dropped")


def test_events_dropped_for_a_sink_are_counted_if_known() -> None:
    event = json.loads(
        events_dropped(
            CONTEXT, reason="sink\x1b siem was down", number=1, since_ns=TIME_NS, until_ns=NOW_NS
        ).to_json()
    )
    assert event["type_uid"] == 600299
    assert (event["activity_name"], event["severity"], event["count"]) == (
        "Events Dropped",
        "High",
        1,
    )
    assert event["message"].startswith("1 event was dropped: sink")
    assert "\x1b" not in event["message"]
    unknown = events_dropped(
        CONTEXT, reason="damaged", number=None, since_ns=TIME_NS, until_ns=NOW_NS
    )
    assert unknown.count is None
    assert unknown.message == "An unknown number of events may have been dropped: damaged."


@pytest.mark.parametrize(("activity", "name"), [("start", "Start"), ("stop", "Stop")])
def test_start_and_stop_are_events(activity: Any, name: str) -> None:
    event = lifecycle(CONTEXT, activity=activity, time_ns=TIME_NS)
    assert event.activity_name == name
    assert event.app.name == "ocsf-nft"
    assert event.metadata.profiles == ("host",)


def gap_event(**facts: Any) -> ApplicationLifecycle:
    defaults: dict[str, Any] = {
        "sandbox": "web",
        "packets": 2_034_112,
        "since_ns": TIME_NS,
        "until_ns": TIME_NS + 10_240_000_000,
        "reason": "the service was stopped",
        "processed_ns": NOW_NS,
    }
    return collection_gap(CONTEXT, **(defaults | facts))


def test_unread_packets_have_duration_and_count() -> None:
    event = json.loads(gap_event().to_json())
    assert event["type_uid"] == 600299
    assert event["activity_name"] == "Collection Gap"
    assert event["severity"] == "High"
    assert event["status_detail"] == "the service was stopped"
    assert event["count"] == 2_034_112
    assert event["time"] == event["end_time"] == event["start_time"] + 10_240
    assert event["duration"] == 10_240
    assert event["unmapped"] == {"sandbox": "web"}
    assert event["message"] == (
        "ocsf-nft did not read the fence of sandbox web for 10.2 s. Meanwhile 2034112 "
        "packets were blocked; later events count them."
    )


@pytest.mark.parametrize(
    ("packets", "severity", "meanwhile"),
    [
        (0, "Low", "there was no packet to block."),
        (1, "High", "1 packet was blocked; later events count it."),
    ],
)
def test_severity_of_unread_time_depends_on_refused_packets(
    packets: int, severity: str, meanwhile: str
) -> None:
    event = gap_event(packets=packets)
    assert event.severity == severity
    assert event.message.endswith(f"for 10.2 s. Meanwhile {meanwhile}")


def test_a_clock_that_was_set_back_makes_no_event_that_ends_before_it_starts() -> None:
    event = gap_event(until_ns=TIME_NS - 5_000_000_000)
    assert event.start_time == event.end_time == event.time == 1767225595000
    assert event.duration is None
    assert gap_event(until_ns=TIME_NS).duration is None
    assert gap_event(until_ns=TIME_NS + 1_000_000).duration == 1
    assert "for 0 ms." in event.message


def test_unread_time_has_a_unique_uid() -> None:
    others = [
        gap_event(),
        gap_event(sandbox="db"),
        gap_event(packets=1),
        gap_event(since_ns=1),
        gap_event(until_ns=TIME_NS + 1),
        gap_event(reason="late"),
    ]
    assert len({event.metadata.uid for event in others}) == len(others)
    assert gap_event(processed_ns=1).metadata.uid == gap_event().metadata.uid


def test_events_about_ocsf_nft_give_their_times_in_milliseconds() -> None:
    at, until_ns = TIME_NS // 1_000_000, TIME_NS + 2_000_000_000
    changed = state_event(FenceState.ABSENT, FenceState.ACTIVE)
    fell = attribution_degraded(CONTEXT, method="user", reason="no BTF", time_ns=TIME_NS)
    for instant in (changed, lifecycle(CONTEXT, activity="stop", time_ns=TIME_NS), fell):
        assert (instant.time, instant.start_time, instant.end_time) == (at, None, None)
        assert instant.metadata.processed_time == at
    dropped = events_dropped(
        CONTEXT, reason="damaged", number=2, since_ns=TIME_NS, until_ns=until_ns
    )
    assert dropped.metadata.processed_time == at + 2000
    others = (records_dropped(CONTEXT, OVERRUN, processed_ns=NOW_NS), gap_event(until_ns=until_ns))
    assert {each.metadata.processed_time for each in others} == {NOW_NS // 1_000_000}
    for span in (dropped, *others):
        assert (span.time, span.start_time, span.end_time) == (at + 2000, at, at + 2000)
        assert span.duration == 2000


def test_gap_has_a_duration_from_one_millisecond_on() -> None:
    for milliseconds, duration in ((0, None), (1, 1), (2, 2)):
        until_ns = TIME_NS + milliseconds * 1_000_000
        event = records_dropped(CONTEXT, replace(OVERRUN, until_ns=until_ns), processed_ns=NOW_NS)
        assert event.duration == duration


def test_gap_message_agrees_with_the_number_of_records() -> None:
    for number, text in (
        (0, "0 records were dropped"),
        (1, "1 record was dropped"),
        (2, "2 records were dropped"),
    ):
        event = records_dropped(CONTEXT, replace(OVERRUN, dropped=number), processed_ns=NOW_NS)
        assert event.message.startswith(f"{text} on the way")


def test_events_name_the_host_if_it_is_known() -> None:
    times: dict[str, Any] = {"since_ns": TIME_NS, "until_ns": NOW_NS}
    for context, names in ((CONTEXT, ["device.hostname"]), (Context(), None)):
        facts: dict[str, Any] = {"context": context, "reason": "damaged"}
        for event in (
            records_dropped(context, OVERRUN, processed_ns=NOW_NS),
            events_dropped(number=None, **facts, **times),
            collection_gap(sandbox="web", packets=1, processed_ns=NOW_NS, **facts, **times),
            lifecycle(context, activity="start", time_ns=TIME_NS),
            attribution_degraded(method="user", time_ns=TIME_NS, **facts),
            fault_event(context=context),
        ):
            found = event.observables and [each.name for each in event.observables]
            assert found == names


def fault_event(**facts: Any) -> ApplicationLifecycle:
    defaults: dict[str, Any] = {
        "context": CONTEXT,
        "subject": "sink a is down",
        "cause": "refused",
        "sandbox": None,
        "since_ns": TIME_NS,
        "now_ns": TIME_NS + 90_000_000_000,
        "is_cleared": False,
    }
    return fault(**(defaults | facts))


def test_events_of_a_fault_tell_its_begin_its_time_and_its_end() -> None:
    begin, lasting, end = (
        json.loads(event.to_json())
        for event in (
            fault_event(now_ns=TIME_NS),
            fault_event(),
            fault_event(is_cleared=True, now_ns=TIME_NS + 91_000_000_000),
        )
    )
    assert [each["message"] for each in (begin, lasting, end)] == [
        "ocsf-nft has a fault: sink a is down: refused.",
        "A fault of ocsf-nft has lasted for 90.0 s: sink a is down: refused.",
        "A fault of ocsf-nft was cleared after 91.0 s. It was: sink a is down: refused.",
    ]
    shown = [(each["activity_name"], each["severity"], each["status"]) for each in (begin, end)]
    assert shown == [("Fault", "Medium", "Failure"), ("Fault Cleared", "Informational", "Success")]
    assert {each["start_time"] for each in (begin, lasting, end)} == {TIME_NS // 1_000_000}
    assert "duration" not in begin
    assert (lasting["duration"], end["duration"]) == (90_000, 91_000)
    assert len({each["metadata"]["correlation_uid"] for each in (begin, lasting, end)}) == 1
    assert len({each["metadata"]["uid"] for each in (begin, lasting, end)}) == 3


def test_fault_of_a_sandbox_is_severe_and_names_it() -> None:
    event = fault_event(sandbox="web")
    assert event.severity_id.name == "HIGH"
    assert event.unmapped == {"sandbox": "web"}


def test_fault_after_a_step_back_of_the_clock_has_no_negative_time() -> None:
    event = fault_event(now_ns=TIME_NS - 1_000_000_000)
    assert event.start_time == event.end_time == event.time
    assert event.duration is None
    assert event.metadata.correlation_uid == fault_event().metadata.correlation_uid
