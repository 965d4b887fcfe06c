"""What we emit conforms to the published schema, whatever the record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context, this_host
from ocsf_nft.ocsf.findings import fan_out
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.notices import FenceState, fence_state, gap, lifecycle, unread
from ocsf_nft.record import Gap
from tests.conformance.corpus import ATTEMPTS, CONTEXT, FAN_OUTS, NOW_NS, RECORDS, TIME_NS
from tests.strategies import HOSTILE_TEXT, MOMENTS, records

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.ocsf.events import Event
    from ocsf_nft.record import Record

    Judge = Callable[[Any], list[str]]

MAPPERS = {
    "knowing": Mapper(CONTEXT),
    "knowing nothing": Mapper(Context()),
    "of this host": Mapper(Context(host=this_host())),
}


def as_json(event: Event) -> Any:
    return json.loads(event.to_json())


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("mapper", MAPPERS)
def test_the_event_of_each_kind_of_record_has_no_fault(
    judge: Judge, name: str, mapper: str
) -> None:
    event = MAPPERS[mapper].network_activity(Attempt.of(RECORDS[name]), processed_ns=NOW_NS)
    assert judge(as_json(event)) == []


@settings(max_examples=150, deadline=None)
@given(record=records(), now_ns=MOMENTS)
def test_any_record_becomes_an_event_without_fault(
    judge: Judge, record: Record, now_ns: int
) -> None:
    for mapper in (MAPPERS["knowing"], MAPPERS["knowing nothing"]):
        line = mapper.network_activity(Attempt.of(record), processed_ns=now_ns).to_json()
        assert judge(json.loads(line)) == []
        assert b"\n" not in line


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.parametrize("mapper", MAPPERS)
def test_the_event_of_each_kind_of_attempt_has_no_fault(
    judge: Judge, name: str, mapper: str
) -> None:
    event = as_json(MAPPERS[mapper].network_activity(ATTEMPTS[name], processed_ns=NOW_NS))
    assert judge(event) == []
    assert event["count"] == event["traffic"]["packets"] == ATTEMPTS[name].packets


@pytest.mark.parametrize("name", FAN_OUTS)
@pytest.mark.parametrize("context", [CONTEXT, Context()], ids=["host", "no host"])
def test_the_finding_of_each_fan_out_has_no_fault(
    judge: Judge, name: str, context: Context
) -> None:
    assert judge(as_json(fan_out(context, FAN_OUTS[name], processed_ns=NOW_NS))) == []


@settings(max_examples=60, deadline=None)
@given(record=records(), now_ns=MOMENTS)
def test_the_same_record_has_the_same_uid_in_any_run(record: Record, now_ns: int) -> None:
    first = MAPPERS["knowing"].network_activity(Attempt.of(record), processed_ns=now_ns)
    again = Mapper(Context()).network_activity(Attempt.of(record), processed_ns=NOW_NS)
    assert first.metadata.uid == again.metadata.uid
    assert first.metadata.correlation_uid == again.metadata.correlation_uid


@pytest.mark.parametrize("before", FenceState)
@pytest.mark.parametrize("after", FenceState)
@pytest.mark.parametrize("context", [CONTEXT, Context()], ids=["host", "no host"])
def test_what_becomes_of_a_fence_has_no_fault(
    judge: Judge, before: FenceState, after: FenceState, context: Context
) -> None:
    event = fence_state(
        context,
        sandbox="sb1",
        before=before,
        after=after,
        time_ns=TIME_NS,
        tables=["inet ocsf_nft", "netdev ocsf_nft"],
        transport="nflog",
        reason="the kernel lacks nft_log",
    )
    assert judge(as_json(event)) == []


@settings(max_examples=40, deadline=None)
@given(text=HOSTILE_TEXT, now_ns=MOMENTS)
def test_notices_hold_any_text(judge: Judge, text: str, now_ns: int) -> None:
    lost = Gap(transport="kmsg", reason=text, lost=3, since_ns=now_ns, until_ns=now_ns)
    degraded = fence_state(
        CONTEXT,
        sandbox=text,
        before=FenceState.STANDING,
        after=FenceState.DEGRADED,
        time_ns=now_ns,
        tables=[text],
        transport=text,
        reason=text,
    )
    stopped = lifecycle(CONTEXT, activity="stop", time_ns=now_ns, reason=text)
    late = unread(
        CONTEXT,
        sandbox=text,
        packets=3,
        since_ns=TIME_NS,
        until_ns=now_ns,
        reason=text,
        processed_ns=now_ns,
    )
    for event in (gap(CONTEXT, lost, processed_ns=now_ns), degraded, stopped, late):
        assert judge(as_json(event)) == []


@pytest.mark.parametrize("lost", [None, 0, 1, 1000])
@pytest.mark.parametrize("context", [CONTEXT, Context()], ids=["host", "no host"])
def test_lost_records_are_told_without_fault(
    judge: Judge, lost: int | None, context: Context
) -> None:
    missing = Gap(transport="nflog", reason="overrun", lost=lost, since_ns=TIME_NS, until_ns=NOW_NS)
    event = as_json(gap(context, missing, processed_ns=NOW_NS))
    assert judge(event) == []
    assert event.get("count") == lost


@pytest.mark.parametrize("context", [CONTEXT, Context()], ids=["host", "no host"])
def test_starting_and_stopping_has_no_fault(judge: Judge, context: Context) -> None:
    assert judge(as_json(lifecycle(context, activity="start", time_ns=TIME_NS))) == []
    assert judge(as_json(lifecycle(context, activity="stop", time_ns=TIME_NS))) == []


@pytest.mark.parametrize("packets", [0, 1, 2_034_112])
@pytest.mark.parametrize("context", [CONTEXT, Context()], ids=["host", "no host"])
def test_what_was_not_read_is_told_without_fault(
    judge: Judge, packets: int, context: Context
) -> None:
    event = unread(
        context,
        sandbox="sb1",
        packets=packets,
        since_ns=TIME_NS,
        until_ns=NOW_NS,
        reason="the service was stopped",
        processed_ns=NOW_NS,
    )
    assert judge(as_json(event)) == []
