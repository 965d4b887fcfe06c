"""A run whose fence is tampered with: each time one event, and the fence stands again."""

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

from ocsf_nft.fence import installer
from ocsf_nft.fence.tamper_guard import MAX_RESTORES
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, PROXY_PORT, ip
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
_PROXIES = ("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--proxy", f"[{GATEWAY6}]:{PROXY_PORT}")


class Output:
    """What a run has written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def told(self) -> list[dict[str, Any]]:
        """What became of the fence."""
        return [event for event in written.so_far(self.path) if event["class_uid"] == 5019]

    def tampered(self) -> list[dict[str, Any]]:
        return [event for event in self.told() if "changes" in event["unmapped"]]

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "events.jsonl")


@pytest.fixture
def named(state: StateDirectory, output: Output) -> list[str]:
    """The options of a run on a fence that stands."""
    return [
        *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path)),
        *("--output", str(output.path)),
    ]


@pytest.fixture
def flood(lab: Lab) -> Iterator[Callable[[], list[subprocess.Popen[str]]]]:
    """Attempts as fast as they go, by a process for each core."""
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
    """Run nft inside; its pid."""
    process = namespace.call(lambda: subprocess.Popen(["nft", text]))
    assert process.wait(30) == 0
    return process.pid


def _stands(state: StateDirectory) -> bool:
    return installer.verify(conftest.SANDBOX, state).verdict == "as installed"


@pytest.mark.parametrize(
    ("tampering", "words", "keeps"),
    [
        ("flush ruleset", "table inet ocsf_nft was deleted; table netdev", False),
        ("delete table inet ocsf_nft", "table inet ocsf_nft was deleted", False),
        ("insert rule inet ocsf_nft output accept", "a rule was put into chain output", True),
        ("add chain inet ocsf_nft foreign { type filter hook output priority -500; }",
         "chain foreign was made or changed", True),
        ("add element inet ocsf_nft allowed4 { 203.0.113.7 . udp . 9 }",
         "an element was put into set allowed4", True),
        ("flush table netdev ocsf_nft", " taken out of chain ", True),
    ],
)  # fmt: skip
def test_tampering_under_a_flood_is_one_event_that_names_it_and_the_fence_stands_again(
    installed: object,
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    flood: Callable[[], list[subprocess.Popen[str]]],
    judge: Callable[[Any], list[str]],
    tampering: str,
    words: str,
    keeps: bool,
) -> None:
    assert installed
    with command.running(*named) as running:
        senders = flood()
        output.wait(lambda: any(e["class_uid"] == 4001 for e in written.so_far(output.path)))
        pid = _tamper(fenced.sandbox_namespace, tampering)
        output.wait(lambda: bool(output.tampered()))
        assert _stands(state)
        for sender in senders:
            sender.terminate()
        sent = sum(int(sender.communicate(timeout=30)[0]) for sender in senders)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert len(output.told()) == 1, [each["status_detail"] for each in output.told()]
    (event,) = output.tampered()
    assert not judge(event)
    assert words in event["unmapped"]["changes"]
    assert (event["severity"], event["state"]) == ("High", "Enabled")
    process = event["actor"]["process"]
    assert (process["pid"], process["name"]) == (pid, "nft")
    assert event["duration"] == event["end_time"] - event["start_time"] > 0
    if not keeps:  # what had been counted and not been read is gone with the counters
        return
    counted = conftest.counted(fenced.sandbox_namespace)[INTERNET4]
    # An accept in front let the link layer count what the IP stack then did not.
    assert counted == sent or "accept" in tampering or "allowed4" in tampering
    status = command.run("status", "--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    assert status.code == 0, status.stderr


def test_several_tamperings_are_as_many_events(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    pids = []
    with command.running(*named) as running:
        for number in range(5):
            pids.append(_tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft"))
            output.wait(lambda many=number + 1: len(output.tampered()) == many)  # type: ignore[misc]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert [event["actor"]["process"]["pid"] for event in output.tampered()] == pids
    assert _stands(state)


def test_what_happens_as_a_run_is_told_to_stop_is_told(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        output.wait(output.path.exists)
        _tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft")
        assert running.stop(signal.SIGTERM)[0] == 0
    assert len(output.tampered()) == 1
    assert _stands(state)


def test_without_self_heal_it_is_told_and_left(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    with command.running(*named, "--no-self-heal") as running:
        pid = _tamper(fenced.sandbox_namespace, "insert rule inet ocsf_nft output accept")
        output.wait(lambda: bool(output.tampered()))
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.told()
    assert (event["state"], event["severity"], event["status"]) == ("Altered", "High", "Failure")
    assert event["actor"]["process"]["pid"] == pid
    assert "+\t\taccept" in event["status_detail"].replace("\\x09", "\t")
    assert not _stands(state)


@pytest.mark.parametrize(
    ("tampering", "before"),
    [
        (["flush", "ruleset"], "Absent"),
        (["insert", "rule", "inet", "ocsf_nft", "output", "accept"], "Altered"),
    ],
    ids=["flushed", "altered"],
)
def test_what_was_done_while_nobody_watched_is_put_right_when_a_run_begins(
    fenced: Lab,
    state: StateDirectory,
    output: Output,
    named: list[str],
    tampering: list[str],
    before: str,
) -> None:
    """A supervisor starts a run again that was killed, and the fence is gone by then."""
    conftest.nft(fenced.sandbox_namespace, *tampering)
    assert installer.verify(conftest.SANDBOX, state).verdict != "as installed"
    with command.running(*named) as running:
        assert installer.verify(conftest.SANDBOX, state).verdict == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    (told,) = output.tampered()
    assert told["unmapped"]["previous_state"] == before
    assert told["severity"] == "High"
    assert "it was altered or gone, and has been put back" in told["status_detail"]


def test_a_fence_that_is_removed_in_the_regular_way_is_not_put_back(
    fenced: Lab, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        done = command.run("remove", *named[:4])
        assert done.code == 0, done.stderr
        output.wait(lambda: bool(output.told()))
        time.sleep(0.5)
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = output.told()
    assert (event["state"], event["severity"], event["status"]) == ("Disabled", "Medium", "Success")
    assert "removed" in event["status_detail"]
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""


def test_a_fence_that_is_installed_anew_is_taken_over(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, output: Output, named: list[str]
) -> None:
    other = replace(spec, exceptions=(endpoint("10.200.0.9:80"),))
    with command.running(*named) as running:
        installer.install(other, fenced.sandbox_namespace, state, "nflog")
        output.wait(lambda: bool(output.told()))
        _tamper(fenced.sandbox_namespace, "flush ruleset")
        output.wait(lambda: bool(output.tampered()))
        assert running.stop(signal.SIGTERM)[0] == 0
    anew, tampered = output.told()
    assert anew["status_detail"].startswith("it was installed anew")
    assert anew["severity"] == "Informational"
    assert "put back" in tampered["status_detail"]
    installed = state.read(conftest.SANDBOX)
    assert installed is not None
    assert installed.spec == other
    assert _stands(state)


def test_a_fence_that_is_fought_over_is_given_up_loudly_and_the_run_says_so_at_its_end(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        # As two who each put their own in the place of the other's: more often than is borne.
        for number in range(MAX_RESTORES + 1):
            _tamper(fenced.sandbox_namespace, "insert rule inet ocsf_nft output accept")
            output.wait(lambda many=number + 1: len(output.tampered()) == many)  # type: ignore[misc]
        code, said = running.stop(signal.SIGTERM)
    *_, last = output.tampered()
    assert (last["severity"], last["status"], last["state"]) == ("Critical", "Failure", "Altered")
    assert last["status_detail"].startswith(f"given up: put back {MAX_RESTORES} times in 60 s")
    assert code == 1, said
    assert said.splitlines()[-1] == "ocsf-nft: given up, and does not stand: the fence of lab"
    assert not _stands(state)


def test_a_new_interface_is_no_tampering(
    fenced: Lab, state: StateDirectory, output: Output, named: list[str]
) -> None:
    with command.running(*named) as running:
        ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        output.wait(lambda: any("late0" in e["status_detail"] for e in output.told()))
        assert running.stop(signal.SIGTERM)[0] == 0
    assert output.tampered() == []
    assert {event["severity"] for event in output.told()} == {"Informational"}
    assert _stands(state)


def test_the_guard_on_the_host_is_guarded_too(
    lab: Lab, state: StateDirectory, output: Output
) -> None:
    """The gateway's namespace is the host of this run."""
    options = [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox, "--install"),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--host-guard", _GATEWAY_DEVICE),
        *("--state-dir", str(state.path), "--output", str(output.path)),
    ]
    with command.running(*options, inside=lab.gateway_namespace) as running:
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
    """Where the pids are others, nobody is named by one."""
    script = """
    ip link set lo up; ip link add a0 type veth peer name a1; ip link set a0 up
    ip address add 10.9.0.2/24 dev a0
    "$@" 2> "$LOG" &
    run=$!
    until grep -q ^ready "$LOG"; do kill -0 $run || exit 9; sleep 0.05; done
    nft flush ruleset
    until grep -q "put back" "$OUTPUT"; do sleep 0.05; done
    kill -TERM $run; wait $run
    """
    options = [
        *("--sandbox", "own", "--proxy", "10.9.0.1:3128", "--install", "--transport", "nflog"),
        *("--state-dir", str(state.path), "--output", str(output.path)),
    ]
    unshare = ["unshare", "-Urn", *(("-p", "-f", "--mount-proc") if own_pids else ())]
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", *command.COMMAND, "run", *options],
        env={**os.environ, "LOG": str(tmp_path / "log"), "OUTPUT": str(output.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    (event,) = output.tampered()
    assert "table inet ocsf_nft was deleted" in event["unmapped"]["changes"]
    if own_pids:
        assert "actor" not in event
        assert "calls itself nft; its pid is not known here" in event["status_detail"]
    else:
        assert event["actor"]["process"]["name"] == "nft"


def test_a_run_that_is_killed_leaves_the_fence_or_the_next_one_tells(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, output: Output, named: list[str]
) -> None:
    for _ in range(4):
        with command.running(*named) as running:
            _tamper(fenced.sandbox_namespace, "delete table inet ocsf_nft")
            time.sleep(random.random() / 10)
            running.process.kill()
            running.process.wait()
        before = len(output.told())
        stood = _stands(state)
        install = ["--install", "--netns", fenced.sandbox, *_PROXIES]
        with command.running(*named, *install) as running:
            assert _stands(state)
            assert running.stop(signal.SIGTERM)[0] == 0
        installer.install(spec, fenced.sandbox_namespace, state, "nflog")
        told = output.told()[before:]
        assert stood or any("put back" in event["status_detail"] for event in told), told
