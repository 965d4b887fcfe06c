from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering, fence_state
from ocsf_nft.process import Process
from tests.conformance.corpus import CONTEXT, TIME_NS

if TYPE_CHECKING:
    from ocsf_nft.ocsf.events import DeviceConfigStateChange


def state_event(before: FenceState, after: FenceState, **more: Any) -> DeviceConfigStateChange:
    facts: dict[str, Any] = {
        "sandbox": "sb1",
        "before": before,
        "after": after,
        "time_ns": TIME_NS,
        "tables": ["inet ocsf_nft", "netdev ocsf_nft"],
        "transport": "nflog",
    }
    return fence_state(CONTEXT, **(facts | more))


def test_active_fence_is_enabled() -> None:
    event = state_event(FenceState.ABSENT, FenceState.ACTIVE)
    assert event.state == "Enabled"
    assert event.severity == "Informational"
    assert event.security_level == "Secure"
    assert event.prev_security_level == "At Risk"
    assert event.status == "Success"
    assert event.message == (
        "The fence of sandbox sb1 is active, and logs what it blocks (before: absent)."
    )
    assert event.unmapped == {
        "sandbox": "sb1",
        "previous_state": "Absent",
        "tables": ["inet ocsf_nft", "netdev ocsf_nft"],
        "transport": "nflog",
    }


def test_a_fence_that_can_not_log_is_degraded() -> None:
    event = state_event(FenceState.ABSENT, FenceState.DEGRADED, reason="the kernel lacks nft_log")
    assert (event.state_id, event.state) == (99, "Degraded")
    assert event.severity == "High"
    assert event.security_level == "At Risk"
    assert event.status == "Failure"
    assert event.status_detail == "the kernel lacks nft_log"


def test_altered_fence_may_refuse_nothing() -> None:
    event = state_event(FenceState.ACTIVE, FenceState.ALTERED, reason="nft was not found")
    assert (event.state_id, event.state) == (99, "Altered")
    assert event.severity == "High"
    assert (event.prev_security_level, event.security_level) == ("Secure", "At Risk")
    assert event.status == "Failure"
    assert event.message == (
        "The fence of sandbox sb1 differs from the installed one, or can't be read: it "
        "may block nothing (before: active)."
    )


def test_removed_fence_is_disabled() -> None:
    event = state_event(FenceState.ACTIVE, FenceState.ABSENT)
    assert event.state == "Disabled"
    assert event.severity == "Informational"


def test_each_change_has_a_uid_of_its_own() -> None:
    one = state_event(FenceState.ABSENT, FenceState.ACTIVE)
    assert one.metadata.uid == state_event(FenceState.ABSENT, FenceState.ACTIVE).metadata.uid
    others = [
        state_event(FenceState.DEGRADED, FenceState.ACTIVE),
        state_event(FenceState.ABSENT, FenceState.ACTIVE, sandbox="sb2"),
        state_event(FenceState.ABSENT, FenceState.ACTIVE, time_ns=TIME_NS + 1),
        state_event(FenceState.ABSENT, FenceState.ACTIVE, reason="again"),
    ]
    assert len({one.metadata.uid, *(other.metadata.uid for other in others)}) == 5


def test_without_a_host_the_device_is_unknown() -> None:
    event = fence_state(
        Context(),
        sandbox="sb1",
        before=FenceState.ABSENT,
        after=FenceState.ACTIVE,
        time_ns=TIME_NS,
        tables=[],
        transport="nflog",
    )
    assert event.device.name == "unknown"
    assert event.observables is None


@pytest.mark.parametrize(
    ("after", "reason", "expected"),
    [
        (FenceState.ACTIVE, None, ("Success", "Informational")),
        (FenceState.ACTIVE, "it was restored", ("Success", "Informational")),
        (FenceState.ABSENT, None, ("Success", "Informational")),
        (FenceState.ABSENT, "another process removed it", ("Failure", "Critical")),
        (FenceState.ALTERED, "it differs", ("Failure", "High")),
        (FenceState.DEGRADED, "no nft_log", ("Failure", "High")),
    ],
)
def test_unexpected_removal_has_a_higher_severity_than_a_regular_one(
    after: FenceState, reason: str | None, expected: tuple[str, str]
) -> None:
    event = fence_state(
        CONTEXT, sandbox="sb1", before=FenceState.ACTIVE, after=after, time_ns=TIME_NS,
        tables=[], transport="nflog", reason=reason,
    )  # fmt: skip
    assert (event.status, event.severity) == expected


TAMPERING = Tampering(
    changes="table inet ocsf_nft was deleted",
    process=Process(pid=4711, name="nft", path="/usr/sbin/nft", cmd_line="nft flush ruleset"),
    since_ns=TIME_NS,
    lasted_ns=2_300_000,
)


def test_tampering_event_has_process_and_duration() -> None:
    event = json.loads(
        state_event(FenceState.ACTIVE, FenceState.ACTIVE, tampering=TAMPERING).to_json()
    )
    assert (event["severity"], event["status"], event["state"]) == ("High", "Success", "Enabled")
    assert event["message"] == (
        "The fence of sandbox sb1 is active, and logs what it blocks; another process "
        "altered it, and it has been restored."
    )
    assert event["actor"]["process"]["cmd_line"] == "nft flush ruleset"
    assert event["unmapped"]["changes"] == "table inet ocsf_nft was deleted"
    assert (event["start_time"], event["duration"]) == (TIME_NS // 1_000_000, 2)
    names = {each["name"] for each in event["observables"]}
    assert {"actor.process.name", "actor.process.pid", "actor.process.file.path"} <= names
    assert "profiles" not in event["metadata"]


@pytest.mark.parametrize(
    ("after", "given_up", "expected"),
    [
        (FenceState.ACTIVE, False, ("Success", "High")),
        (FenceState.DEGRADED, False, ("Failure", "High")),
        (FenceState.PERMISSIVE, False, ("Success", "High")),
        (FenceState.ALTERED, False, ("Failure", "High")),
        (FenceState.ABSENT, False, ("Failure", "Critical")),
        (FenceState.ACTIVE, True, ("Failure", "Critical")),
        (FenceState.ALTERED, True, ("Failure", "Critical")),
    ],
)
def test_tampering_is_high_and_giving_up_is_critical(
    after: FenceState, given_up: bool, expected: tuple[str, str]
) -> None:
    tampering = replace(TAMPERING, given_up=given_up)
    event = state_event(FenceState.ACTIVE, after, reason="why", tampering=tampering)
    assert (event.status, event.severity) == expected


@pytest.mark.parametrize(
    ("since_ns", "lasted_ns", "span"),
    [
        (None, None, (None, None, None)),
        (TIME_NS, None, (TIME_NS // 1_000_000, None, None)),
        (TIME_NS, 1, (TIME_NS // 1_000_000, TIME_NS // 1_000_000 + 1, 1)),
    ],
)
def test_known_times_of_tampering_are_in_the_event(
    since_ns: int | None, lasted_ns: int | None, span: tuple[int | None, ...]
) -> None:
    tampering = Tampering(changes="a rule", since_ns=since_ns, lasted_ns=lasted_ns)
    event = state_event(FenceState.ACTIVE, FenceState.ACTIVE, tampering=tampering)
    assert (event.start_time, event.end_time, event.duration) == span
    assert event.actor is None


def test_regular_removal_has_a_reason_and_is_informational() -> None:
    event = state_event(
        FenceState.ACTIVE, FenceState.ABSENT, reason="it was removed", is_regular=True
    )
    assert (event.status, event.severity) == ("Success", "Informational")
    assert event.status_detail == "it was removed"


def test_fence_message_has_restored_only_after_a_restore() -> None:
    for after, given_up, is_restored in (
        (FenceState.ACTIVE, False, True),
        (FenceState.PERMISSIVE_DEGRADED, False, True),
        (FenceState.ACTIVE, True, False),
        (FenceState.ALTERED, False, False),
        (FenceState.ABSENT, False, False),
    ):
        tampering = replace(TAMPERING, given_up=given_up)
        event = state_event(FenceState.ACTIVE, after, reason="why", tampering=tampering)
        assert ("has been restored" in event.message) is is_restored


def test_fence_without_a_log_is_not_said_to_log() -> None:
    for state, mode in ((FenceState.ACTIVE, ""), (FenceState.PERMISSIVE, " and permissive")):
        event = state_event(FenceState.ABSENT, state, transport="none")
        assert event.message.startswith(
            f"The fence of sandbox sb1 is active{mode}. As requested, it counts what it "
        )
        assert "logs none of it (before: absent)." in event.message
