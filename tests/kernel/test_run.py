"""Events of the command line for attempts in a sandbox, with each log transport."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer, verification
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT, SANDBOX4, SANDBOX6, ip
from tests.kernel import accounts, attempts, command, conftest, written
from tests.kernel.journald import in_journal, journald

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

_TIMES = 4
#: Constants of a run that reads the counters only at its start and its stop, so that records come
#: first however late they are, and that waits for the event of a record's sender.
OF_RECORDS = {
    "ocsf_nft.service.reading_schedule.READ_SECONDS": 600.0,
    "ocsf_nft.service.reading_schedule._LONGEST_SECONDS": 600.0,
    "ocsf_nft.service.gap_reports._LATE_NS": 600 * 1_000_000_000,
    "ocsf_nft.attribution.fallback_chain._EVENT_DELAY_SECONDS": 2.0,
}


def _options(lab: Lab, state: StateDirectory, output: Path) -> list[str]:
    return [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--proxy", f"[{GATEWAY6}]:{PROXY_PORT}"),
        *("--state-dir", str(state.path), "--output", str(output)),
    ]


def _refused(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the attempts of users, without packets of the kernel, which have no user."""
    return [event for event in events if event["class_uid"] == 4001 and "actor" in event]


def _packets(events: list[dict[str, Any]]) -> int:
    return sum(event["count"] for event in events)


def _make_attempts(lab: Lab) -> Counter[tuple[object, ...]]:
    """Make the attempts; return the expected number of events of each kind."""
    namespace = lab.sandbox_namespace
    namespace.call(attempts.allow_ping)
    expected: Counter[tuple[object, ...]] = Counter()
    for uid, kinds in (
        (0, attempts.UNPRIVILEGED + attempts.PRIVILEGED),
        (1000, attempts.UNPRIVILEGED),
    ):
        attempts.attempt(namespace, uid, _TIMES, *(kind for kind, *_ in kinds))
        for _kind, version, protocol, port in kinds:
            source, target = (
                (SANDBOX4, attempts.INTERNET4) if version == 4 else (SANDBOX6, attempts.INTERNET6)
            )
            expected[source, "sb0", target, port, protocol, str(uid)] += _TIMES
    return expected


def _seen(event: dict[str, Any]) -> tuple[object, ...]:
    source, target = event["src_endpoint"], event["dst_endpoint"]
    return (
        source["ip"],
        source["interface_name"],
        target["ip"],
        target.get("port"),
        event["connection_info"]["protocol_num"],
        event["actor"]["user"]["uid"],
    )


@pytest.mark.parametrize("source", ["nflog", "kmsg", "journal"])
def test_each_attempt_is_one_correct_event_with_every_transport(
    lab: Lab,
    state: StateDirectory,
    tmp_path: Path,
    judge: Callable[[Any], list[str]],
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in OF_RECORDS.items():
        monkeypatch.setattr(name, value)
    output = tmp_path / "events.jsonl"
    arguments = [*_options(lab, state, output), "--install", "--source", source]
    if source == "journal":
        with journald(tmp_path / "journald"):
            expected, span = _run(lab, arguments, output, in_journal(tmp_path / "journald"))
    else:
        expected, span = _run(lab, arguments, output, ())
    events = written.events(output)
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    refused = _refused(events)
    seen: Counter[tuple[object, ...]] = Counter()
    for event in refused:
        seen[_seen(event)] += event["count"]
    assert seen == expected
    # Each user's attempts are made by one process, which has exited by now.
    whose = {(event["actor"]["user"]["uid"], _named(event)) for event in refused}
    assert len(whose) == len({uid for uid, _ in whose}) == 2
    assert {confidence for _, (_, confidence) in whose} == {"High"}
    assert len({event["metadata"]["uid"] for event in events}) == len(events)
    started, ended, stopped = span
    # Only the kernel log has the kernel's time of each packet.
    for event in refused:
        # The last packet of an event may be counted without a record, when the run stops.
        is_timed = source == "kmsg" and event["count"] == 1
        assert started - 20 <= event["time"] <= (ended + 20 if is_timed else stopped)
    states = [event["state_id"] for event in events if event["class_uid"] == 5019]
    assert states == [2, 1]  # enabled, disabled
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


def _named(event: dict[str, Any]) -> tuple[str, str]:
    """Return the pid of the attributed process, and the confidence."""
    (how,) = event["enrichments"]
    return how["value"], how["data"]["confidence"]


def _run(
    lab: Lab, arguments: list[str], output: Path, under: Sequence[str]
) -> tuple[Counter[tuple[object, ...]], tuple[int, int, int]]:
    with command.running(*arguments, under=under, constants=OF_RECORDS) as running:
        started = time.time_ns() // 1_000_000
        expected = _make_attempts(lab)
        ended = time.time_ns() // 1_000_000
        # Each flow has an event of a record before the counters are read at the stop.
        accounts.until(lambda: expected.keys() <= set(map(_seen, _refused(written.so_far(output)))))
        code, messages = running.stop(signal.SIGTERM)
        stopped = time.time_ns() // 1_000_000
    assert code == 0, messages
    return expected, (started, ended, stopped)


@pytest.mark.parametrize("burst", [2_000, 20_000])
def test_sigterm_right_after_the_attempts_leaves_none_unreported(
    lab: Lab, state: StateDirectory, tmp_path: Path, burst: int
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        attempts.attempt(lab.sandbox_namespace, 0, burst, "flood")
        code, messages = running.stop(signal.SIGTERM)
    events = written.events(output)
    assert code == 0, messages
    assert burst == _packets(
        [e for e in events if e.get("dst_endpoint", {}).get("port") == attempts.PORT]
    )


def test_fence_that_was_active_before_stays_active(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    with command.running(*_options(fenced, state, tmp_path / "o"), "--install") as running:
        assert running.stop(signal.SIGINT)[0] == 0
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


def test_a_sandbox_is_watched_again_by_its_name_alone(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    with command.running(*named, "--output", str(output)) as running:
        attempts.attempt(fenced.sandbox_namespace, 0, 3, "udp4")
        assert running.stop(signal.SIGTERM)[0] == 0
    refused = _refused(written.events(output))
    assert _packets(refused) == 3
    assert refused[0]["proxy_endpoint"] == {"ip": GATEWAY4, "port": PROXY_PORT}
    assert refused[0]["firewall_rule"]["uid"].startswith("inet/ocsf_nft/log_egress/")


def test_an_interface_that_appears_later_is_fenced_too(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        ip("-n", lab.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        accounts.until(
            lambda: verification.verify(conftest.SANDBOX, state).verdict == "as installed"
        )
        assert "late0" in conftest.nft(lab.sandbox_namespace, "list", "table", "netdev", "ocsf_nft")
        assert running.stop(signal.SIGTERM)[0] == 0
    found = [event for event in written.events(output) if event["class_uid"] == 5019]
    details = [event.get("status_detail") or "" for event in found]
    assert any("late0" in detail for detail in details)


def _send_datagram() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        contextlib.suppress(OSError),
    ):
        sock.sendto(b"bypass", ("10.200.0.77", 9))


def test_run_monitors_two_sandboxes_of_one_file(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    """The gateway's namespace serves as a second sandbox."""
    output = tmp_path / "events.jsonl"
    config = tmp_path / "ocsf-nft.toml"
    config.write_text(
        f"""
        output = "{output}"
        state_dir = "{state.path}"
        [[sandbox]]
        name = "one"
        netns = "{lab.sandbox}"
        proxy = ["10.200.0.9:1"]
        install = true
        [[sandbox]]
        name = "two"
        netns = "{lab.gateway}"
        proxy = ["10.200.0.9:1"]
        install = true
        """
    )
    with command.running("--config", str(config)) as running:
        for namespace in (lab.sandbox_namespace, lab.gateway_namespace):
            namespace.call(_send_datagram)
        assert running.stop(signal.SIGTERM)[0] == 0
    seen = {
        event["src_endpoint"]["name"]
        for event in written.events(output)
        if event.get("dst_endpoint", {}).get("port") == 9
    }
    assert seen == {"one", "two"}


def test_run_without_a_fence_does_not_start(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    done = command.run("run", *_options(lab, state, tmp_path / "events.jsonl"))
    assert done.code == 2
    assert "sandbox lab has no active fence" in done.sentence


def test_a_sandbox_has_one_run(lab: Lab, state: StateDirectory, tmp_path: Path) -> None:
    options = _options(lab, state, tmp_path / "events.jsonl")
    with command.running(*options, "--install") as running:
        second = command.run("run", *options, "--install", "--group", "4002")
        assert second.code == 3
        assert "another run watches sandbox lab" in second.sentence
        assert running.stop(signal.SIGTERM)[0] == 0


def test_fence_flushed_under_a_run_is_restored_and_reported(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        conftest.nft(lab.sandbox_namespace, "flush", "ruleset")
        accounts.until(
            lambda: verification.verify(conftest.SANDBOX, state).verdict == "as installed"
        )
        assert running.stop(signal.SIGTERM)[0] == 0
    found = [event for event in written.events(output) if event["class_uid"] == 5019]
    details = [event.get("status_detail") or "" for event in found]
    assert any("restored" in detail for detail in details)


def test_opened_fence_is_reported_as_altered_and_not_active(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    with command.running(*named, "--no-self-heal", "--output", str(output)) as running:
        conftest.nft(fenced.sandbox_namespace, "insert rule inet ocsf_nft output accept")
        ip("-n", fenced.sandbox, "link", "set", "lo", "mtu", "60000")  # check the fence now
        accounts.until(lambda: b"5019" in output.read_bytes())
        assert running.stop(signal.SIGTERM)[0] == 0
    (altered,) = (event for event in written.events(output) if event["class_uid"] == 5019)
    assert (altered["state_id"], altered["state"], altered["severity"]) == (99, "Altered", "High")
    assert "may block nothing (before: active)" in altered["message"]
    assert "accept" in altered["status_detail"]


def test_removed_fence_is_reported_at_the_end(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        installer.remove(conftest.SANDBOX, state)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    *before, stopped = written.events(output)
    active, removed = (event for event in before if event["class_uid"] == 5019)
    assert (active["state_id"], removed["state_id"]) == (2, 1)
    assert "before: active" in removed["message"]
    # The removal is found at once, or at the end of the run.
    assert "removed" in removed["status_detail"]
    assert (stopped["class_uid"], stopped["activity_name"]) == (6002, "Stop")


def test_stop_during_a_check_of_the_fence_leaves_no_fence_behind(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        with state.locked():
            conftest.nft(lab.sandbox_namespace, "flush", "ruleset")
            lab.sandbox_namespace.call(
                lambda: subprocess.run(["ip", "link", "add", "type", "veth"], check=True)
            )
            time.sleep(0.5)  # the check has begun, and waits for the lock
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        _, messages = running.process.communicate(timeout=120)
    assert running.process.returncode == 0, messages
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""
    assert not list(state.sandboxes())


def test_a_record_that_names_a_sandbox_of_another_namespace_is_a_forgery(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    conftest.nft(
        fenced.sandbox_namespace,
        "add table inet mine; add chain inet mine o { type filter hook output priority -10; }; "
        'add rule inet mine o log prefix "ocsf-nft:victim:egress:" group 4001',
    )
    with command.running(*_options(fenced, state, output)) as running:
        attempts.attempt(fenced.sandbox_namespace, 0, 3, "udp4")
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0
    assert "forged" in messages
    assert "victim" not in output.read_text()
    assert _packets(_refused(written.events(output))) == 3


def test_recreated_namespace_is_fenced_again(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(lab, state, output), "--install") as running:
        ip("netns", "del", lab.sandbox)
        ip("netns", "add", lab.sandbox)
        end = time.monotonic() + 60
        while not verification.is_installed(lab.sandbox_namespace):
            assert time.monotonic() < end
            time.sleep(0.01)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    about_fence = [each for each in written.events(output) if each["class_uid"] == 5019]
    assert {each["severity"] for each in about_fence} == {"Informational"}
    ends = [
        each["message"].partition(". ")[0] for each in about_fence if "ended" in each["message"]
    ]
    assert ends == [
        f"Sandbox {conftest.SANDBOX} has ended, with its network namespace",
        f"Sandbox {conftest.SANDBOX} has ended: ocsf-nft has stopped, and removed its fence",
    ]
