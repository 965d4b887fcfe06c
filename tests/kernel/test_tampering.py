"""Tampering with the fence of a run: each time there is one event, and the fence is restored."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer, tamper_guard, verification
from ocsf_nft.fence.tamper_guard import MAX_RESTORES, TamperGuard
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, PROXY_PORT, ip
from ocsf_nft.service import fence_monitor
from ocsf_nft.service.fence_monitor import FenceMonitor
from tests.kernel import command, conftest, flooding, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_FLOOD = Path(__file__).with_name("flood.py")
_GATEWAY_DEVICE = "gw0"
#: The command line, which creates a file after each check of the fence.
_RUN = """
import os, pathlib
from ocsf_nft.cli import main
from ocsf_nft.service.fence_monitor import FenceMonitor
check = FenceMonitor._inspect
async def check_and_record(monitor, *arguments):
    await check(monitor, *arguments)
    pathlib.Path(os.environ["CHECKED"]).touch()
FenceMonitor._inspect = check_and_record
needs_none = FenceMonitor._is_unchanged
def omit_and_record(monitor):
    if is_unchanged := needs_none(monitor):
        pathlib.Path(os.environ["CHECKED"]).touch()
    return is_unchanged
FenceMonitor._is_unchanged = omit_and_record
main()
"""
_PROXIES = ("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--proxy", f"[{GATEWAY6}]:{PROXY_PORT}")


class Output:
    """Events that a run has written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of_fence(self) -> list[dict[str, Any]]:
        """Return the events about the fence."""
        return [event for event in written.so_far(self.path) if event["class_uid"] == 5019]

    def tampered(self) -> list[dict[str, Any]]:
        return [event for event in self.of_fence() if "changes" in event["unmapped"]]

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, self.of_fence()
            time.sleep(0.05)


@pytest.fixture
def slow_second_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the guard's thread time to restore and report a change that a check has found first.

    A run, a fork of this process, waits so long only after such a check. Otherwise the check
    restores the fence itself, and reports the change without its process.
    """
    monkeypatch.setattr(fence_monitor, "_RETRY_SECONDS", 5.0)


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Return a function that counts the ended steps of runs, which are forks of this process.

    The steps are each "check" of the fence, and each "preparation" of its guard for a restore. The
    first check is later than "ready", and must not find a test's change before the guard does. A
    check that is omitted, because nothing has changed, counts as well: the next one is a minute
    later.
    """
    check, prepare = FenceMonitor._inspect, TamperGuard.use_restore_batch
    needs_none = FenceMonitor._is_unchanged

    def record(step: str) -> None:
        with (tmp_path / step).open("ab") as file:
            file.write(b".")

    async def check_and_record(monitor: FenceMonitor, *arguments: Any) -> None:
        await check(monitor, *arguments)
        record("check")

    def omit_and_record(monitor: FenceMonitor) -> bool:
        if is_unchanged := needs_none(monitor):
            record("check")
        return is_unchanged

    def prepare_and_record(guard: TamperGuard, *arguments: Any) -> None:
        prepare(guard, *arguments)
        record("preparation")

    monkeypatch.setattr(FenceMonitor, "_inspect", check_and_record)
    monkeypatch.setattr(FenceMonitor, "_is_unchanged", omit_and_record)
    monkeypatch.setattr(TamperGuard, "use_restore_batch", prepare_and_record)
    for step in ("check", "preparation"):
        (tmp_path / step).touch()
    return lambda step: (tmp_path / step).stat().st_size


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "events.jsonl")


@pytest.fixture
def named(state: StateDirectory, output: Output) -> list[str]:
    """Return the options of a run with an installed fence."""
    return [
        *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path)),
        *("--output", str(output.path)),
    ]


@pytest.fixture
def flood(lab: Lab) -> Iterator[Callable[[], list[subprocess.Popen[str]]]]:
    """Start attempts at full speed, with one process for each core."""
    started: list[subprocess.Popen[str]] = []

    def start() -> list[subprocess.Popen[str]]:
        command_line = [sys.executable, str(_FLOOD), INTERNET4, "120"]
        started.extend(
            lab.sandbox_namespace.call(
                lambda: subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True)
            )
            for _ in os.sched_getaffinity(0)
        )
        for process in started:
            flooding.wait_for_sigterm_handler(process.pid)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _tamper(namespace: Namespace, text: str) -> int:
    """Run nft in the namespace; return its pid."""
    process = namespace.call(lambda: subprocess.Popen(["nft", text]))
    assert process.wait(60) == 0
    return process.pid


def _is_active(state: StateDirectory) -> bool:
    return verification.verify(conftest.SANDBOX, state).verdict == "as installed"


@pytest.mark.parametrize(
    ("tampering", "words", "keeps"),
    [
        ("flush ruleset", "table inet ocsf_nft was deleted; table netdev", False),
        ("delete table inet ocsf_nft", "table inet ocsf_nft was deleted", False),
        ("insert rule inet ocsf_nft output accept", "a rule was added to chain output", True),
        ("add chain inet ocsf_nft foreign { type filter hook output priority -500; }",
         "chain foreign was created or changed", True),
        ("add element inet ocsf_nft allowed4 { 203.0.113.7 . udp . 9 }",
         "an element was added to set allowed4", True),
        ("flush table netdev ocsf_nft", " removed from chain ", True),
    ],
)  # fmt: skip
def test_tampering_under_a_flood_is_one_event_and_the_fence_is_restored(
    installed: object,
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    flood: Callable[[], list[subprocess.Popen[str]]],
    judge: Callable[[Any], list[str]],
    ended: Callable[[str], int],
    tampering: str,
    words: str,
    keeps: bool,
) -> None:
    assert installed
    with command.running(*named) as running:
        senders = flood()
        output.wait(lambda: ended("check") > 0)
        output.wait(lambda: any(e["class_uid"] == 4001 for e in written.so_far(output.path)))
        pid = _tamper(fenced.sandbox_namespace, tampering)
        output.wait(lambda: bool(output.tampered()))
        assert _is_active(state)
        for sender in senders:
            sender.terminate()
        sent = sum(int(sender.communicate(timeout=60)[0]) for sender in senders)
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.tampered()
    others = [each for each in output.of_fence() if each != event]
    # While the tables are missing, the last gate stops the flood, and reports the stopped frames.
    stopped = {"gate-blocked"} if tampering == "flush ruleset" else set()
    assert {each["metadata"]["event_code"] for each in others} <= stopped, others
    assert not any(map(judge, (event, *others)))
    assert words in event["unmapped"]["changes"]
    assert (event["severity"], event["state"]) == ("High", "Enabled")
    process = event["actor"]["process"]
    assert (process["pid"], process["name"]) == (pid, "nft")
    assert event["duration"] == event["end_time"] - event["start_time"] > 0
    if not keeps:  # packets counted since the last reading were deleted with the counters
        return
    counted = conftest.counted(fenced.sandbox_namespace)[INTERNET4]
    # An accept in front let the link layer count packets that the IP stack then allowed.
    assert counted == sent or "accept" in tampering or "allowed4" in tampering
    status = command.run("status", "--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    assert status.code == 0, status.stderr


@pytest.mark.usefixtures("slow_second_check")
def test_several_tamperings_are_as_many_events(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
) -> None:
    pids = []
    with command.running(*named) as running:
        output.wait(lambda: ended("check") > 0)
        for number in range(5):
            pids.append(_tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft"))
            output.wait(lambda many=number + 1: len(output.tampered()) == many)  # type: ignore[misc]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert [event["actor"]["process"]["pid"] for event in output.tampered()] == pids
    assert _is_active(state)


@pytest.mark.usefixtures("slow_second_check")
def test_tampering_during_a_stop_is_reported(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
) -> None:
    with command.running(*named) as running:
        output.wait(lambda: output.path.exists() and ended("check") > 0)
        _tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft")
        assert running.stop(signal.SIGTERM)[0] == 0
    assert len(output.tampered()) == 1
    assert _is_active(state)


@pytest.mark.usefixtures("slow_second_check")
def test_tampering_without_self_heal_is_reported_and_not_reverted(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
) -> None:
    with command.running(*named, "--no-self-heal") as running:
        output.wait(lambda: ended("check") > 0)
        pid = _tamper(fenced.sandbox_namespace, "insert rule inet ocsf_nft output accept")
        output.wait(lambda: bool(output.tampered()))
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.of_fence()
    assert (event["state"], event["severity"], event["status"]) == ("Altered", "High", "Failure")
    assert event["actor"]["process"]["pid"] == pid
    assert "+\t\taccept" in event["status_detail"].replace("\\x09", "\t")
    assert not _is_active(state)


@pytest.mark.parametrize(
    ("tampering", "before"),
    [
        (["flush", "ruleset"], "Absent"),
        (["insert", "rule", "inet", "ocsf_nft", "output", "accept"], "Altered"),
    ],
    ids=["flushed", "altered"],
)
def test_start_of_a_run_restores_a_fence_altered_before(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    tampering: list[str],
    before: str,
) -> None:
    """A supervisor restarts a killed run; meanwhile the fence was altered or removed."""
    conftest.nft(fenced.sandbox_namespace, *tampering)
    assert verification.verify(conftest.SANDBOX, state).verdict != "as installed"
    with command.running(*named) as running:
        assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.tampered()
    assert event["unmapped"]["previous_state"] == before
    assert event["severity"] == "High"
    assert "it was altered or removed, and was restored" in event["status_detail"]


def test_fence_removed_in_the_regular_way_is_not_restored(
    fenced: Lab, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        done = command.run("remove", *named[:4])
        assert done.code == 0, done.stderr
        output.wait(lambda: bool(output.of_fence()))
        time.sleep(0.5)
        assert running.stop(signal.SIGTERM)[0] == 0
    event, *others = output.of_fence()
    assert not [each["message"] for each in others]
    assert (event["state"], event["severity"], event["status"]) == (
        "Disabled",
        "Informational",
        "Success",
    )
    assert "removed" in event["status_detail"]
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""


@pytest.mark.usefixtures("slow_second_check")
def test_reinstalled_fence_is_accepted(
    fenced: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
) -> None:
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    with command.running(*named) as running:
        output.wait(lambda: ended("check") > 0)
        prepared = ended("preparation")
        installer.install(other, fenced.sandbox_namespace, state, "nflog")
        output.wait(lambda: bool(output.of_fence()) and ended("preparation") > prepared)
        _tamper(fenced.sandbox_namespace, "flush ruleset")
        output.wait(lambda: bool(output.tampered()))
        assert running.stop(signal.SIGTERM)[0] == 0
    reinstalled, tampered = output.of_fence()
    assert reinstalled["status_detail"].startswith("it was installed again")
    assert reinstalled["severity"] == "Informational"
    assert "restored" in tampered["status_detail"]
    installed = state.read(conftest.SANDBOX)
    assert installed is not None
    assert installed.spec == other
    assert _is_active(state)


@pytest.mark.usefixtures("slow_second_check")
def test_run_gives_up_a_fence_changed_too_often_and_reports_it_at_the_end(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tamper_guard, "RESTORE_WINDOW_SECONDS", 600.0)
    with command.running(*named) as running:
        output.wait(lambda: ended("check") > 0)
        # As two processes that replace each other's fence, more often than a run tolerates.
        for number in range(MAX_RESTORES + 1):
            _tamper(fenced.sandbox_namespace, "insert rule inet ocsf_nft output accept")
            output.wait(lambda many=number + 1: len(output.tampered()) == many)  # type: ignore[misc]
        code, messages = running.stop(signal.SIGTERM)
    *_, last = output.tampered()
    assert (last["severity"], last["status"], last["state"]) == ("Critical", "Failure", "Altered")
    assert last["status_detail"].startswith(f"given up: restored {MAX_RESTORES} times in 600 s")
    assert code == 1, messages
    assert (
        messages.splitlines()[-1]
        == "ocsf-nft: restoring was given up, and the fence is not active: lab"
    )
    assert not _is_active(state)


def test_a_new_interface_is_no_tampering(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        output.wait(lambda: any("late0" in e["status_detail"] for e in output.of_fence()))
        assert running.stop(signal.SIGTERM)[0] == 0
    assert output.tampered() == []
    assert {event["severity"] for event in output.of_fence()} == {"Informational"}
    assert _is_active(state)


@pytest.mark.usefixtures("slow_second_check")
def test_the_guard_on_the_host_is_guarded_too(
    lab: Lab, state: StateDirectory, output: Output, ended: Callable[[str], int]
) -> None:
    """The gateway's namespace serves as the host of this run."""
    options = [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox, "--install"),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--host-guard", _GATEWAY_DEVICE),
        *("--state-dir", str(state.path), "--output", str(output.path)),
    ]
    with command.running(*options, inside=lab.gateway_namespace) as running:
        output.wait(lambda: ended("check") > 0)
        pid = _tamper(lab.gateway_namespace, "flush ruleset")
        output.wait(lambda: bool(output.tampered()))
        listed = conftest.nft(lab.gateway_namespace, "list", "table", "netdev", "ocsf_nft_gw0")
        assert "guard of sandbox lab" in listed
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.tampered()
    assert event["unmapped"]["changes"] == "table netdev ocsf_nft_gw0 was deleted"
    assert event["actor"]["process"]["pid"] == pid
    assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ""


@pytest.mark.parametrize("own_pids", [False, True])
def test_a_fence_in_a_user_namespace_is_guarded_without_any_privilege_outside(
    state: StateDirectory, output: Output, tmp_path: Path, own_pids: bool
) -> None:
    """With other pids in the namespace, no process is named by its pid."""
    script = """
    ip link set lo up; ip link add a0 type veth peer name a1; ip link set a0 up
    ip address add 10.9.0.2/24 dev a0
    "$@" 2> "$LOG" &
    run=$!
    until grep -q ready "$LOG" && test -e "$CHECKED"; do kill -0 $run || exit 9; sleep 0.05; done
    nft flush ruleset
    until grep -q "restored" "$OUTPUT"; do kill -0 $run || exit 8; sleep 0.05; done
    kill -TERM $run; wait $run
    """
    options = [
        *("--sandbox", "own", "--proxy", "10.9.0.1:3128", "--install", "--transport", "nflog"),
        *("--state-dir", str(state.path), "--output", str(output.path)),
    ]
    unshare = ["unshare", "-Urn", *(("-p", "-f", "--mount-proc") if own_pids else ())]
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", sys.executable, "-c", _RUN, "run", *options],
        env={
            **os.environ,
            "LOG": str(tmp_path / "log"),
            "OUTPUT": str(output.path),
            "CHECKED": str(tmp_path / "checked"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    (event,) = output.tampered()
    assert "table inet ocsf_nft was deleted" in event["unmapped"]["changes"]
    if own_pids:
        assert "actor" not in event
        assert "calls itself nft, with an unknown pid" in event["status_detail"]
    else:
        assert event["actor"]["process"]["name"] == "nft"


def test_killed_run_leaves_the_fence_active_or_the_next_run_reports_it(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, output: Output, named: list[str]
) -> None:
    for _ in range(4):
        with command.running(*named) as running:
            _tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft")
            time.sleep(random.random() / 10)
            running.process.kill()
            running.process.wait()
        before = len(output.of_fence())
        was_active = _is_active(state)
        install = ["--install", "--netns", fenced.sandbox, *_PROXIES]
        with command.running(*named, *install) as running:
            assert _is_active(state)
            assert running.stop(signal.SIGTERM)[0] == 0
        installer.install(spec, fenced.sandbox_namespace, state, "nflog")
        found = output.of_fence()[before:]
        assert was_active or any("restored" in event["status_detail"] for event in found), found


def test_finding_about_tampering_continues_after_its_run_was_killed(
    installed: object,
    fenced: Lab,
    output: Output,
    named: list[str],
    ended: Callable[[str], int],
    judge: Callable[[Any], list[str]],
) -> None:
    assert installed

    def tamper_and_kill(number: int, checks: int) -> None:
        with command.running(*named) as running:
            output.wait(lambda: ended("check") > checks)
            _tamper(fenced.sandbox_namespace, "add chain inet ocsf_nft foreign")
            output.wait(lambda: len(output.tampered()) > number)
            running.process.kill()
            running.process.wait()

    for number in range(3):
        tamper_and_kill(number, ended("check"))
    with command.running(*named) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    findings = [event for event in written.so_far(output.path) if event["class_uid"] == 2004]
    first, *others = (event["activity_name"] for event in findings)
    assert (first, set(others)) == ("Create", {"Update"})
    assert findings[-1]["count"] == 3
    assert findings[-1]["status_detail"].startswith("Inactive since ")
    assert len({event["finding_info"]["uid"] for event in findings}) == 1
    assert not [fault for event in findings for fault in judge(event)]
