from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from structlog.testing import capture_logs

from ocsf_nft import config
from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import listing, nft, restore_batch
from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.listing import RulesetVersion
from ocsf_nft.fence.spec import Surroundings
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import Generation
from ocsf_nft.ocsf.fence_state_events import FenceState, PolicyChange, SandboxEnd
from ocsf_nft.process import Process
from ocsf_nft.service import fence_monitor, fence_reports, fences, restore_preparation
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.fence_monitor import FenceMonitor
from ocsf_nft.service.fences import Fence, Inspection
from tests.service.keeping import MemoryStore
from tests.standing import INSTALLED, PERMISSIVE, verified

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.fence.verification import Verdict

ACTIVE = Fence(installed=INSTALLED, state=FenceState.ACTIVE, is_ours=True)
WELL = Inspection(fence=ACTIVE)
TAMPERED = FenceChange(
    changes="table inet ocsf_nft was deleted",
    process=Process(pid=4711, name="nft", path="/usr/sbin/nft"),
    comm="nft",
    arrived_ns=1_767_225_600_000_000_000,
    restored_after_ns=2_300_000,
)
UNMENDED = replace(TAMPERED, restored_after_ns=None)
_END = SandboxEnd(description="has ended", refused=1, allowed=0)


@pytest.fixture
def sink() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def make(
    sink: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FenceMonitor]:
    monkeypatch.setattr(Namespace, "has_identity", lambda _, identity: identity == "4:1")
    state = StateDirectory(tmp_path)

    def made(fence: Fence = ACTIVE, *, self_heal: bool = False) -> FenceMonitor:
        parsed = config.parse({"sandbox": [{"name": "sb1", "self_heal": self_heal}]}, where="test")
        reporter = Reporter(sink.commit, None)
        return FenceMonitor(
            parsed.sandbox[0], fence, state, reporter, GuardThread(), asyncio.Semaphore()
        )

    return made


@pytest.fixture
def set_inspections(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the results of successive inspections; the last one is repeated."""
    monkeypatch.setattr(fence_monitor, "_RETRY_SECONDS", 0)

    def find(*seen: Inspection | OcsfNftError | None) -> None:
        waiting = list(seen)

        def inspect(*_: object, **__: object) -> Inspection | None:
            found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if isinstance(found, OcsfNftError):
                raise found
            return found

        monkeypatch.setattr(fences, "inspect", inspect)

    return find


def state_changes(sink: MemoryStore) -> list[tuple[str, str, str | None]]:
    """Return the previous state, the state and the reason of each event."""
    names = {"Enabled": "Active", "Disabled": "Absent"}
    return [
        (
            event["unmapped"]["previous_state"],
            names.get(event["state"], event["state"]),
            event.get("status_detail"),
        )
        for event in sink.of_class(5019)
    ]


def altered(reason: str) -> Inspection:
    return Inspection(fence=replace(ACTIVE, state=FenceState.ALTERED, reason=reason))


async def test_event_begins_with_the_state_in_the_event_before(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newer = replace(ACTIVE, installed=replace(INSTALLED, policy="newer"))
    seen: list[Inspection | OcsfNftError] = [
        WELL,
        altered("a rule came"),
        AbsentError("no fence"),
        AbsentError("no fence"),
        WELL,
        UnsupportedError("no nft"),
        Inspection(fence=newer, was_renewed=True, difference="+accept"),
        Inspection(fence=replace(newer, state=FenceState.DEGRADED, reason="no nft_log")),
    ]
    set_inspections(*seen)
    verified(monkeypatch, "as installed")
    fence = make()
    await fence.reports.announce()
    for _ in seen:
        await fence._inspect()
    assert await fence.removal.remove()
    await fence.reports.report_end(_END, is_removed=True)
    assert state_changes(sink) == [
        ("Absent", "Active", None),
        ("Active", "Altered", "a rule came"),
        ("Altered", "Absent", "no fence"),
        ("Absent", "Active", "it is active as installed again"),
        ("Active", "Altered", "no nft"),
        ("Altered", "Active", "it was altered or removed, and was restored: +accept"),
        ("Active", "Degraded", "no nft_log"),
        ("Degraded", "Absent", None),
    ]


async def test_restored_fence_is_one_event_of_high_severity_with_change_and_process(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    fence = make(self_heal=True)
    await fence._inspect((TAMPERED,))
    (event,) = sink.of_class(5019)
    assert state_changes(sink) == [
        ("Active", "Active", ("table inet ocsf_nft was deleted, by nft (pid 4711); "
         "restored 2.3 ms later"))
    ]  # fmt: skip
    assert (event["severity"], event["status"]) == ("High", "Success")
    assert event["unmapped"]["changes"] == "table inet ocsf_nft was deleted"
    process = event["actor"]["process"]
    assert (process["pid"], process["path"]) == (4711, "/usr/sbin/nft")
    assert event["end_time"] - event["start_time"] == event["duration"] == 2


async def test_repair_by_nft_after_a_restore_is_the_same_event(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(Inspection(fence=ACTIVE, was_renewed=True, difference="+chain foreign"))
    await make(self_heal=True)._inspect((TAMPERED,))
    assert len(state_changes(sink)) == 1


async def test_several_changes_are_separate_events(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    await make(self_heal=True)._inspect(
        (TAMPERED, replace(TAMPERED, changes="a rule came"), TAMPERED)
    )
    assert [detail.split(",")[0] for _, _, detail in state_changes(sink) if detail] == [
        "table inet ocsf_nft was deleted",
        "a rule came",
        "table inet ocsf_nft was deleted",
    ]


async def test_event_of_each_repair_begins_with_the_state_in_the_event_before(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    fence = make(replace(ACTIVE, state=FenceState.ALTERED, reason="a rule came"), self_heal=True)
    await fence._inspect((TAMPERED, TAMPERED))
    assert [states for *states, _ in state_changes(sink)] == [
        ["Altered", "Active"],
        ["Active", "Active"],
    ]


async def test_fence_restored_by_nft_is_reported_with_the_process(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(Inspection(fence=ACTIVE, was_renewed=True, difference="it was missing"))
    await make(self_heal=True)._inspect((UNMENDED,))
    assert state_changes(sink) == [
        ("Active", "Active",
         "table inet ocsf_nft was deleted, by nft (pid 4711); it was restored")
    ]  # fmt: skip
    assert sink.events[0]["severity"] == "High"


async def test_own_ruleset_change_is_not_reported(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    await make(self_heal=True)._inspect((UNMENDED,))
    assert state_changes(sink) == []


async def test_unrestored_fence_is_reported_as_altered_once(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(altered("it is not as it was installed: +accept"))
    fence = make()
    await fence._inspect((UNMENDED,))
    await fence._inspect()
    await fence._inspect((UNMENDED,))
    assert state_changes(sink) == [
        ("Active", "Altered", ("table inet ocsf_nft was deleted, by nft (pid 4711): "
         "it is not as it was installed: +accept"))
    ]  # fmt: skip
    assert (sink.events[0]["severity"], sink.events[0]["status"]) == ("High", "Failure")
    assert sink.events[0]["actor"]["process"]["name"] == "nft"


@pytest.mark.parametrize("fault", ["altered", "error"])
async def test_permissive_fence_was_restored_to_permissive_before_a_later_fault(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    fault: str,
) -> None:
    permissive = Fence(
        installed=PERMISSIVE,
        state=FenceState.PERMISSIVE,
        before=FenceState.PERMISSIVE,
        is_ours=False,
    )
    changed = replace(permissive, state=FenceState.ALTERED, reason="a rule came")
    set_inspections(FenceError("no nft") if fault == "error" else Inspection(fence=changed))
    # The present installation may be newer than the one that the monitor knows.
    await make(permissive if fault == "error" else ACTIVE, self_heal=True)._inspect(
        (TAMPERED, UNMENDED)
    )
    (_, restored, _), (previous, state, _) = state_changes(sink)
    assert (restored, previous, state) == ("Permissive", "Permissive", "Altered")


async def test_degraded_fence_was_restored_to_degraded_before_a_later_fault(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    installed = replace(INSTALLED, degraded="no nft_log")
    degraded = Fence(installed=installed, state=FenceState.DEGRADED, is_ours=False)
    set_inspections(FenceError("no nft"))
    await make(degraded, self_heal=True)._inspect((TAMPERED, UNMENDED))
    assert [after for _, after, _ in state_changes(sink)] == ["Degraded", "Altered"]


async def test_reverted_change_is_reported_without_self_heal(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    await make()._inspect((UNMENDED,))
    assert state_changes(sink) == [
        ("Active", "Active", ("table inet ocsf_nft was deleted, by nft (pid 4711); "
         "it is active as installed again"))
    ]  # fmt: skip


async def test_event_names_the_last_of_several_changes(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    later = replace(UNMENDED, changes="table netdev ocsf_nft was deleted")
    await make()._inspect((UNMENDED, later))
    ((_, _, detail),) = state_changes(sink)
    assert detail is not None
    assert detail.startswith("table netdev ocsf_nft was deleted")


@pytest.mark.parametrize(
    ("comm", "words"),
    [
        ("nft", "by a process that calls itself nft, with an unknown pid"),
        (None, "by an unknown process"),
    ],
)
async def test_unknown_process_is_not_named(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    comm: str | None,
    words: str,
) -> None:
    set_inspections(WELL)
    await make(self_heal=True)._inspect((replace(TAMPERED, process=None, comm=comm),))
    (event,) = sink.of_class(5019)
    assert words in event["status_detail"]
    assert "actor" not in event


def findings(sink: MemoryStore) -> list[tuple[str, str, str]]:
    """Return the code, the activity and the first word of the status of each finding's event."""
    return [
        (
            event["finding_info"]["analytic"]["uid"].removeprefix("ocsf-nft/"),
            event["activity_name"],
            event["status_detail"].replace(":", " ").split()[0],
        )
        for event in sink.of_class(2004)
    ]


async def test_fence_that_is_removed_and_comes_back_is_a_finding(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(AbsentError("no fence"), AbsentError("no fence"), WELL)
    fence = make()
    for _ in range(3):
        await fence._inspect()
    assert findings(sink) == [
        ("fence-removed", "Create", "New"),
        ("fence-removed", "Update", "Inactive"),
    ]
    created, ended = sink.of_class(2004)
    assert created["severity"] == "Critical"
    assert created["attacks"][0]["sub_technique"]["uid"] == "T1562.004"
    assert "actor" not in created, "the process that removed it is unknown"
    (removed, active) = sink.of_class(5019)
    assert removed["metadata"]["correlation_uid"] == created["finding_info"]["uid"]
    assert "correlation_uid" not in active["metadata"]
    assert ended["finding_info"]["uid"] == created["finding_info"]["uid"]


async def test_restored_fence_is_a_tampering_finding_with_its_process(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    fence = make(self_heal=True)
    await fence._inspect((TAMPERED,))
    await fence._inspect()
    assert findings(sink) == [("tampering", "Create", "New")]
    (finding,) = sink.of_class(2004)
    assert (finding["severity"], finding["is_alert"]) == ("High", True)
    assert finding["actor"]["process"]["pid"] == 4711
    assert finding["attacks"][0]["sub_technique"]["uid"] == "T1562.004"
    assert "restored 2.3 ms later" in finding["finding_info"]["desc"]


async def test_tampering_finding_is_inactive_ten_minutes_after_the_restore(
    make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL, altered("+accept"))
    fence = make(self_heal=True)
    await fence._inspect((TAMPERED,))
    later_ns = time.time_ns() + 601 * 1_000_000_000
    (line,) = fence.reports._reporter.findings.end_quiet(later_ns)
    assert json.loads(line)["status_detail"].startswith("Inactive since")
    await fence._inspect()
    assert fence.reports._reporter.findings.end_quiet(later_ns + 1, closing=True) == [], "it lasts"


async def test_finding_has_all_that_is_known_of_the_process_that_changed_the_fence(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    async def describe(process: Process, at_ns: int) -> Process:
        assert at_ns == TAMPERED.arrived_ns
        return replace(process, uid=0, cmd_line="nft flush ruleset")

    set_inspections(WELL)
    fence = make(self_heal=True)
    fence.reports._describe = describe
    await fence._inspect((TAMPERED, replace(TAMPERED, process=None)))
    named, unnamed = sink.of_class(5019)
    assert named["actor"]["process"]["cmd_line"] == "nft flush ruleset"
    assert "actor" not in unnamed
    (finding,) = sink.of_class(2004)
    assert finding["finding_info"]["title"] == "Fence changed: nft[4711] (uid 0), sandbox sb1"


async def test_altered_fence_is_a_finding_until_it_is_as_installed(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(altered("+accept"), WELL)
    fence = make()
    await fence._inspect()
    await fence._inspect()
    assert findings(sink) == [("tampering", "Create", "New"), ("tampering", "Update", "Inactive")]


async def test_restores_that_stop_are_a_finding_until_the_fence_is_active(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(altered("+accept"), altered("+accept"), WELL)
    fence = make(self_heal=True)
    await fence._inspect((replace(UNMENDED, given_up=True),))
    await fence._inspect()
    assert findings(sink) == [
        ("restore-stopped", "Create", "New"),
        ("restore-stopped", "Update", "Inactive"),
    ]


async def test_requested_removal_is_no_finding(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(None)
    await make()._inspect()
    (event,) = sink.events
    assert (event["state"], event["severity"]) == ("Disabled", "Informational")


async def test_giving_up_is_one_critical_event_until_the_fence_is_active(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(
        altered("+accept"), altered("+accept"), altered("+drop"), altered("+drop"), WELL
    )
    fence = make(self_heal=True)
    await fence._inspect((replace(UNMENDED, given_up=True),))
    (event,) = sink.of_class(5019)
    assert (event["severity"], event["status"], event["state"]) == (
        "Critical", "Failure", "Altered",
    )  # fmt: skip
    assert event["status_detail"] == (
        "given up: restored 10 times in 60 s and changed again each time, last by nft (pid 4711): "
        "table inet ocsf_nft was deleted; the next restore is in 60 s"
    )
    has_given_up = [fence.reports.has_given_up]
    await fence._inspect()
    assert len(sink.of_class(5019)) == 1
    await fence._inspect()
    assert [*has_given_up, fence.reports.has_given_up] == [True, False]
    assert state_changes(sink)[1:] == [("Altered", "Active", "it is active as installed again")]


async def test_giving_up_is_reported_although_the_last_repair_succeeded(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    fence = make(self_heal=True)
    await fence._inspect((TAMPERED, replace(UNMENDED, changes="a rule came", given_up=True)))
    assert [event["severity"] for event in sink.of_class(5019)] == ["High", "Critical"]
    assert [after for _, after, _ in state_changes(sink)] == ["Active", "Active"]
    assert "given up: restored 10 times" in (state_changes(sink)[1][2] or "")
    assert "nft (pid 4711): a rule came" in (state_changes(sink)[1][2] or "")
    assert (fence.reports.has_given_up, fence.reports.verdict, fence.reports.fault) == (
        False,
        "as installed",
        None,
    )
    await fence._inspect()
    assert len(sink.of_class(5019)) == 2


async def test_change_after_giving_up_continues_the_watch(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    fence = make(self_heal=True)
    await fence._inspect(
        (replace(UNMENDED, given_up=True), replace(UNMENDED, changes="a rule came"))
    )
    assert state_changes(sink) == []


async def test_verdict_and_fault_follow_the_last_event(
    make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    degraded = replace(ACTIVE, state=FenceState.DEGRADED, reason="no nft_log")
    cases: tuple[tuple[Inspection | OcsfNftError | None, str, str | None], ...] = (
        (WELL, "as installed", None),
        (altered("a rule came"), "differs", "a rule came"),
        (AbsentError("no fence"), "absent", "no fence"),
        (UnsupportedError("no nft"), "differs", "no nft"),
        (Inspection(fence=degraded), "as installed", None),
        (altered(""), "differs", "altered"),
        (None, "absent", "it was removed by `ocsf-nft remove`"),
    )
    set_inspections(*(inspection for inspection, _, _ in cases))
    fence = make()
    for _, verdict, fault in cases:
        await fence._inspect()
        assert (fence.reports.verdict, fence.reports.fault) == (verdict, fault)


async def test_watch_requires_a_started_monitor(make: Callable[..., FenceMonitor]) -> None:
    with pytest.raises(RuntimeError, match="call start first"):
        await make().watch()


async def test_policy_of_a_stopped_monitor_is_not_changed(
    make: Callable[..., FenceMonitor],
) -> None:
    """The namespace of its sandbox may end during a call."""
    sandbox = SandboxConfig(name="lab", proxy=["10.0.0.1:3128"])
    with pytest.raises(AbsentError, match="has ended"):
        await make().change(sandbox, PolicyChange())


def test_prepare_without_nft_returns_the_version_of_the_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "TRUSTED", ())
    state = StateDirectory(tmp_path)
    assert _prepare(state, (1,), lambda: (7,)) == (None, None, None)
    state.write(INSTALLED)
    with capture_logs() as logs:
        found = _prepare(state, None, lambda: (7,))
    assert found == (None, state.version("sb1"), None)
    (log,) = logs
    assert (log["log_level"], log["sandbox"]) == ("warning", "sb1")
    assert log["event"] == "restoring the fence will take longer"
    assert "nft was not found" in log["reason"]
    assert _prepare(state, state.version("sb1"), lambda: (7,)) is None


def _prepare(
    state: StateDirectory,
    known: tuple[int, ...] | None,
    now: Callable[[], tuple[int, ...]],
    version: RulesetVersion | None = None,
    *,
    compiles: bool = True,
) -> object:
    fence = Fence(installed=INSTALLED, state=FenceState.ACTIVE, is_ours=False, version=version)
    return restore_preparation.prepare_restore(fence, state, known, now, compiles=compiles)


@pytest.mark.parametrize("is_same", [False, True])
def test_fence_is_not_listed_again_if_nothing_has_changed_since_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    state = StateDirectory(tmp_path)
    state.write(INSTALLED)
    verified(monkeypatch, "differs")
    at_start = RulesetVersion((Generation(1, 7),), frozenset({(2, "sb0")}))
    now = at_start if is_same else at_start._replace(interfaces=frozenset({(3, "sb0")}))
    monkeypatch.setattr(listing, "ruleset_version", lambda *_: now)
    found = _prepare(state, None, lambda: (7,), at_start, compiles=False)
    assert found == (None, state.version("sb1"), (7,) if is_same else None)
    # The record is of another fence than at the start.
    state.write(replace(INSTALLED, policy="another"))
    found = _prepare(state, None, lambda: (7,), at_start, compiles=False)
    assert found == (None, state.version("sb1"), None)


@pytest.mark.parametrize("verdict", ["as installed", "differs"])
def test_prepare_returns_generations_only_of_a_fence_that_is_as_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    state = StateDirectory(tmp_path)
    state.write(INSTALLED)
    verified(monkeypatch, verdict)
    ready = object()
    monkeypatch.setattr(restore_batch, "prepare", lambda _: ready)
    found = _prepare(state, None, lambda: (7, 8))
    expected = (7, 8) if verdict == "as installed" else None
    assert found == (ready, state.version("sb1"), expected)


def test_prepare_needs_no_answer_of_the_kernel_for_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer() -> NoReturn:
        raise TimeoutError("timed out")

    state = StateDirectory(tmp_path)
    state.write(INSTALLED)
    verified(monkeypatch, "as installed")
    ready = object()
    monkeypatch.setattr(restore_batch, "prepare", lambda _: ready)
    found = _prepare(state, None, no_answer)
    assert found == (ready, state.version("sb1"), None)


async def test_regular_removal_is_reported_once(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_inspections(None)
    verified(monkeypatch, "absent")
    fence = make(self_heal=True)
    await fence._inspect((UNMENDED,))
    await fence._inspect()
    assert not await fence.removal.remove()
    assert state_changes(sink) == [("Active", "Absent", "it was removed by `ocsf-nft remove`")]
    assert (sink.events[0]["severity"], sink.events[0]["status"]) == ("Informational", "Success")
    assert not fence.reports.has_given_up


async def test_new_installation_is_adopted(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(Inspection(fence=replace(ACTIVE, installed=replace(INSTALLED, policy="newer"))))
    fence = make(self_heal=True)
    await fence._inspect((UNMENDED,))
    await fence._inspect()
    assert state_changes(sink) == [
        ("Active", "Active", "it was installed again, by nft (pid 4711)")
    ]
    assert sink.events[0]["severity"] == "Informational"


async def test_new_interfaces_are_no_tampering(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    around = Surroundings(links=("sb0", "late0"))
    more = replace(ACTIVE, installed=replace(INSTALLED, around=around))
    set_inspections(
        Inspection(fence=more, was_renewed=True, difference="not fenced at the link layer: late0")
    )
    await make(self_heal=True)._inspect()
    assert state_changes(sink) == [
        ("Active", "Active", "its interfaces changed; fenced interfaces: sb0, late0")
    ]
    assert sink.events[0]["severity"] == "Informational"


async def test_event_names_the_first_of_many_interfaces(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    links = tuple(f"sb{number}" for number in range(22))
    more = replace(ACTIVE, installed=replace(INSTALLED, around=Surroundings(links=links)))
    set_inspections(Inspection(fence=more, was_renewed=True))
    await make()._inspect()
    ((_, _, reason),) = state_changes(sink)
    assert (
        reason == f"its interfaces changed; fenced interfaces: {', '.join(links[:20])}, and 2 more"
    )


async def test_interface_that_appears_during_a_check_is_no_tampering_at_the_next_one(
    sink: MemoryStore, make: Callable[..., FenceMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard attaches late0 after the first check has listed the fence; then it is deleted."""
    guard = SimpleNamespace(versions_now=lambda: (7,), attachments=0, is_paused=False)
    seen = [WELL, replace(WELL, was_renewed=True, difference="+late0"), WELL]

    def inspect(*_: object, **__: object) -> Inspection:
        guard.attachments = 1
        return seen.pop(0)

    monkeypatch.setattr(fences, "inspect", inspect)
    monitor = make()
    monitor._watch = SimpleNamespace(  # type: ignore[assignment]
        tamper_guard=guard, take_pending=tuple
    )
    while seen:
        await monitor._inspect()
    assert state_changes(sink) == [
        ("Active", "Active", "its interfaces changed; fenced interfaces: sb0")
    ]
    assert "changes" not in sink.of_class(5019)[0]["unmapped"]


async def test_change_during_new_interfaces_is_a_separate_event(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    around = Surroundings(links=("sb0", "late0"))
    more = replace(ACTIVE, installed=replace(INSTALLED, around=around))
    set_inspections(
        Inspection(fence=more, was_renewed=True, difference="not fenced at the link layer: late0")
    )
    await make(self_heal=True)._inspect((UNMENDED,))
    assert [detail for _, _, detail in state_changes(sink)] == [
        "table inet ocsf_nft was deleted, by nft (pid 4711); it was restored",
        "its interfaces changed; fenced interfaces: sb0, late0",
    ]
    assert [event["severity"] for event in sink.of_class(5019)] == ["High", "Informational"]


async def test_installation_during_new_interfaces_is_no_tampering(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    around = Surroundings(links=("sb0", "late0"))
    more = replace(ACTIVE, installed=replace(INSTALLED, around=around))
    set_inspections(
        Inspection(fence=more, was_renewed=True, difference="not fenced at the link layer: late0")
    )
    await make(self_heal=True)._inspect((replace(UNMENDED, is_regular=True),))
    assert [detail for _, _, detail in state_changes(sink)] == [
        "its interfaces changed; fenced interfaces: sb0, late0"
    ]


async def test_restore_by_an_inspection_has_no_duration(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(WELL)
    await make(self_heal=True)._inspect((replace(TAMPERED, restored_after_ns=0),))
    assert [detail for _, _, detail in state_changes(sink)] == [
        "table inet ocsf_nft was deleted, by nft (pid 4711); it was restored"
    ]


async def test_failed_restore_is_reported_with_error_and_process(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(FenceError("the kernel refused"))
    await make(self_heal=True)._inspect((TAMPERED, UNMENDED))
    assert [after for _, after, _ in state_changes(sink)] == ["Active", "Altered"]
    assert state_changes(sink)[1][2] == (
        "table inet ocsf_nft was deleted, by nft (pid 4711): the kernel refused"
    )


async def test_inspection_during_a_restore_is_repeated(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(altered("+accept"), WELL)
    await make(self_heal=True)._inspect()
    assert state_changes(sink) == []


async def test_event_is_delivered_before_the_log_message(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standard error may have no reader, so that the log blocks forever."""

    class Full:
        def warning(self, *_: object, **__: object) -> None:
            raise BlockingIOError

        error = warning

    monkeypatch.setattr(fence_reports, "_log", Full())
    set_inspections(AbsentError("no fence"))
    fence = make(replace(ACTIVE, state=FenceState.DEGRADED, reason="no nft_log"))
    with pytest.raises(BlockingIOError):
        await fence.reports.announce()
    with pytest.raises(BlockingIOError):
        await fence._inspect()
    assert state_changes(sink) == [
        ("Absent", "Degraded", "no nft_log"),
        ("Degraded", "Absent", "no fence"),
    ]


@pytest.mark.parametrize(
    ("verdict", "error"), [("absent", None), ("as installed", AbsentError("no fence"))]
)
async def test_fence_deleted_before_its_removal_is_reported(
    sink: MemoryStore,
    make: Callable[..., FenceMonitor],
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    error: Exception | None,
) -> None:
    verified(monkeypatch, verdict, error=error)
    assert not await make().removal.remove()
    assert state_changes(sink) == [
        ("Active", "Absent", "another process had removed it before this run did")
    ]


async def test_fence_of_an_earlier_run_is_not_reported(
    sink: MemoryStore, make: Callable[..., FenceMonitor]
) -> None:
    found = make(replace(ACTIVE, is_ours=False))
    await found.reports.announce()
    assert not found.is_ours
    assert state_changes(sink) == []


async def test_fence_of_an_ended_namespace_is_not_inspected(
    sink: MemoryStore, make: Callable[..., FenceMonitor], set_inspections: Callable[..., None]
) -> None:
    set_inspections(AbsentError("no fence"))
    monitor = make(replace(ACTIVE, installed=replace(INSTALLED, identity="4:2")))
    await monitor._inspect((UNMENDED,))
    assert state_changes(sink) == []


@pytest.mark.parametrize(
    ("change", "is_unchanged"),
    [
        ({}, True),
        ({"generations": (8,)}, False),
        ({"generations": None}, False),
        ({"identity": "4:2"}, False),
        ({"version": (2,)}, False),
        ({"now": 1599.0}, True),
        ({"now": 1600.0}, False),
    ],
    ids=str,
)
async def test_check_is_left_out_only_if_nothing_may_have_changed(
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    is_unchanged: bool,
) -> None:
    facts = {"generations": (7,), "identity": "4:1", "version": (1,), "now": 1000.0}
    monkeypatch.setattr(Namespace, "identity", lambda _: facts["identity"])
    monkeypatch.setattr(StateDirectory, "version", lambda *_: facts["version"])
    monkeypatch.setattr(fence_monitor, "time", SimpleNamespace(monotonic=lambda: facts["now"]))
    set_inspections(WELL)
    monitor = make()
    monitor._watch = SimpleNamespace(  # type: ignore[assignment]
        tamper_guard=SimpleNamespace(
            versions_now=lambda: facts["generations"],
            attachments=0,
        )
    )
    assert not monitor._is_unchanged()
    await monitor._inspect()
    facts |= change
    assert monitor._is_unchanged() == is_unchanged


@pytest.mark.parametrize("seen", [altered("a rule came"), AbsentError("no fence"), None], ids=str)
async def test_check_after_one_with_a_fault_is_not_left_out(
    make: Callable[..., FenceMonitor],
    set_inspections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    seen: Inspection | OcsfNftError | None,
) -> None:
    monkeypatch.setattr(Namespace, "identity", lambda _: "4:1")
    set_inspections(WELL, seen)
    monitor = make()
    monitor._watch = SimpleNamespace(  # type: ignore[assignment]
        tamper_guard=SimpleNamespace(versions_now=lambda: (7,), attachments=0),
        take_pending=tuple,
    )
    await monitor._inspect()
    assert monitor._is_unchanged()
    await monitor._inspect()
    assert not monitor._is_unchanged()
