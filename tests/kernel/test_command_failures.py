"""Failures on a real system: one sentence, the documented exit code, and no traceback."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.fence import verification
from ocsf_nft.lab import GATEWAY4, PROXY_PORT, ip
from ocsf_nft.service import delivery_start, pipeline
from tests.cli import forked
from tests.kernel import attempts, command, conftest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_HERE = Path(__file__).parent
_PROXY = f"{GATEWAY4}:{PROXY_PORT}"
_WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
_USER_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def _install(lab: Lab, state: StateDirectory, *more: str) -> tuple[str, ...]:
    scope = ("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox)
    return ("install", *scope, "--proxy", _PROXY, "--state-dir", str(state.path), *more)


def _over_nft(file: Path) -> Sequence[str]:
    """Return a command that runs with another file in place of nft."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    nft = shutil.which("nft", path="/usr/sbin:/usr/bin")
    assert nft is not None
    return ("unshare", "-m", "sh", "-c", script, "sh", str(file), str(Path(nft).resolve()))


def test_install_verify_remove(lab: Lab, state: StateDirectory) -> None:
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    assert command.run("verify", *named).code == 2
    installed = command.run(*_install(lab, state, "--json"))
    assert installed.code == 0
    assert [event["state_id"] for event in installed.events] == [2]
    assert command.run("verify", *named).code == 0
    conftest.nft(lab.sandbox_namespace, "add", "rule", "inet", "ocsf_nft", "output", "accept")
    altered = command.run("verify", *named)
    assert altered.code == 1
    assert "+\t\taccept" in altered.stderr
    assert altered.stdout == ""
    removed = command.run("remove", "--json", *named)
    assert removed.code == 0
    assert [event["state_id"] for event in removed.events] == [1]
    assert command.run(*_install(lab, state)).stdout == ""
    assert command.run("remove", *named).stdout == ""
    assert command.run("remove", *named).code == 2


def test_a_dry_run_prints_a_ruleset_that_nft_takes_and_changes_nothing(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    planned = command.run(*_install(lab, state, "--dry-run"))
    assert planned.code == 0
    file = tmp_path / "planned.nft"
    file.write_text(planned.stdout)
    conftest.nft(lab.sandbox_namespace, "-c", "-f", str(file))
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""
    assert not state.path.exists()


def test_without_privileges(lab: Lab, state: StateDirectory) -> None:
    refused = command.run(*_install(lab, state), under=_WITHOUT_CAPABILITIES)
    assert refused.code == 3
    assert "CAP_SYS_ADMIN" in refused.sentence
    here = ("install", "--sandbox", "a", "--proxy", _PROXY, "--state-dir", str(state.path))
    refused = command.run(*here, under=("unshare", "-n", *_WITHOUT_CAPABILITIES))
    assert refused.code == 3
    assert "CAP_NET_ADMIN" in refused.sentence


@pytest.mark.kernel_log  # without NFLOG the kernel log is tried
def test_without_nft(lab: Lab, state: StateDirectory) -> None:
    refused = command.run(*_install(lab, state), under=_over_nft(Path("/dev/null")))
    assert refused.code == 3
    assert "install the nftables package" in refused.sentence
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


@pytest.fixture
def nft_without_log(tmp_path: Path) -> Path:
    """Create an nft whose kernel has no log expression, see ``without.c``."""
    real = shutil.which("nft", path="/usr/sbin:/usr/bin")
    compiler = shutil.which("cc")
    assert real is not None
    assert compiler is not None
    copy, library, wrapper = tmp_path / "real-nft", tmp_path / "without.so", tmp_path / "nft"
    shutil.copy2(real, copy)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, _HERE / "without.c"], check=True)
    wrapper.write_text(f'#!/bin/sh\nWITHOUT=log LD_PRELOAD={library} exec {copy} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.kernel_log  # without NFLOG the kernel log is tried
def test_without_log_support_the_fence_is_active_and_the_lack_is_reported(
    lab: Lab, state: StateDirectory, nft_without_log: Path
) -> None:
    degraded = command.run(*_install(lab, state, "--json"), under=_over_nft(nft_without_log))
    assert degraded.code == 1
    assert "nft_log" in degraded.sentence
    (event,) = degraded.events
    assert (event["state_id"], event["state"], event["severity"]) == (99, "Degraded", "High")
    assert "log prefix" not in conftest.nft(lab.sandbox_namespace, "list", "ruleset")
    assert "refused_egress" in conftest.nft(lab.sandbox_namespace, "list", "ruleset")


def test_without_log_support_a_transport_by_name_is_refused(
    lab: Lab, state: StateDirectory, nft_without_log: Path
) -> None:
    refused = command.run(
        *_install(lab, state, "--transport", "nflog"), under=_over_nft(nft_without_log)
    )
    assert refused.code == 3
    assert "nft_log" in refused.sentence
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


@pytest.mark.parametrize("name", ["no-such-namespace", "/run/no-such-file", "/proc/self/maps"])
def test_in_a_missing_namespace(state: StateDirectory, name: str) -> None:
    scope = ("--sandbox", "a", "--netns", name, "--proxy", _PROXY, "--state-dir", str(state.path))
    refused = command.run("install", *scope)
    assert refused.code == 2
    assert name in refused.sentence


@pytest.mark.parametrize(
    "wrong",
    [
        ("--proxy", "proxy.example:3128"),
        ("--proxy", "10.0.0.1"),
        ("--proxy", '10.0.0.1"; accept:80'),
        ("--allow", "icmp:10.0.0.1:1"),
        ("--sandbox", "../../etc"),
        ("--transport", "smoke"),
        ("--group", "0"),
        ("--host-guard", 'a"b'),
        ("--host-guard", "nowhere0"),
        ("--pid", "1"),
    ],
    ids=" ".join,
)
def test_with_a_value_that_makes_no_sense(
    lab: Lab, state: StateDirectory, wrong: tuple[str, str]
) -> None:
    refused = command.run(*_install(lab, state, *wrong))
    assert refused.code == 2
    assert refused.sentence
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""
    assert not state.path.exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    (disk / "ballast").write_bytes(bytes(16384))
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_with_a_full_disk_nothing_is_changed(
    lab: Lab, state: StateDirectory, full_disk: Path
) -> None:
    refused = command.run(*_install(lab, state)[:-1], str(full_disk / "state"))
    assert refused.code == 3
    assert "No space left on device" in refused.sentence
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


_IN_USER_NAMESPACE = """
ip link add v0 type veth peer name v1
ip address add 192.0.2.2/24 dev v0
ip link set v0 up && ip link set v1 up
output=$1; shift
"$@" --output "$output" &
end=$(($(date +%s) + 50))
while [ $(date +%s) -lt $end ]; do
    grep -q '"class_uid":6002' "$output" 2>/dev/null && break
    sleep 0.05
done
/usr/bin/python3 -c 'import socket as s
s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b"bypass", ("192.0.2.1", 53))' 2>/dev/null
kill -TERM $!
wait $!
"""


def test_in_a_user_namespace_without_any_privilege_outside(
    state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    scope = ("--sandbox", "pod", "--proxy", _PROXY, "--state-dir", str(state.path))
    done = command.run(
        *("run", *scope, "--install"),
        under=(*_USER_NAMESPACE, "sh", "-c", _IN_USER_NAMESPACE, "sh", str(output)),
    )
    assert done.code == 0, done.stderr
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    (refused,) = (event for event in events if event["class_uid"] == 4001 and "actor" in event)
    assert refused["dst_endpoint"]["ip"] == "192.0.2.1"
    assert refused["actor"]["user"]["uid"] == "0"  # the id within that namespace


def test_check_reports_the_capabilities_of_this_machine() -> None:
    able = command.run("check", "--json")
    assert able.code == 0
    found = {finding["name"]: finding["severity"] for finding in able.events}
    assert {found[name] for name in ("nft", "fence", "nflog", "nflog-reader", "guard")} == {"ok"}
    assert command.run("check").stdout == ""


def test_the_state_of_another_fence_survives_a_failed_replacement(
    fenced: Lab, state: StateDirectory
) -> None:
    refused = command.run(*_install(fenced, state, "--host-guard", "nowhere0"))
    assert refused.code == 2
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


@pytest.mark.parametrize("redirections", [">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_full_standard_output_leaves_the_fence_active(
    lab: Lab, state: StateDirectory, redirections: str
) -> None:
    under = ("sh", "-c", f'exec "$@" {redirections}', "sh")
    refused = command.run(*_install(lab, state, "--json"), under=under)
    assert refused.code == 3
    if "2>" not in redirections:
        assert "standard output can't be written" in refused.sentence
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


#: End of the record of a run that is ready, in JSON form.
_READY = b'"event":"ready","sandboxes":["lab"],"host_log":null}\n'


def _watch(lab: Lab, state: StateDirectory) -> tuple[str, ...]:
    scope = ("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox)
    return (*command.COMMAND, "run", *scope, "--proxy", _PROXY, "--state-dir", str(state.path))


def _start(watch: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a run as a fork of this process, whose time limits it gets."""
    work = partial(forked.become, watch[len(command.COMMAND) :])
    return subprocess.Popen(watch, preexec_fn=work, **streams)  # noqa: PLW1509


@pytest.fixture
def endless_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run wait for its reader until a second signal."""
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 600.0)
    monkeypatch.setattr(pipeline, "_DRAIN_SECONDS", 600.0)


@pytest.mark.usefixtures("endless_drain")
@pytest.mark.parametrize("stderr_too", [False, True])
def test_second_signal_ends_a_run_whose_output_has_no_reader(
    lab: Lab, state: StateDirectory, stderr_too: bool
) -> None:
    reader, writer = os.pipe()
    process = _start(
        [*_watch(lab, state), "--install"],
        stdout=writer,
        stderr=writer if stderr_too else subprocess.PIPE,
    )
    os.close(writer)
    try:
        messages = reader if process.stderr is None else process.stderr.fileno()
        _read_until(messages, _READY)
        attempts.attempt(lab.sandbox_namespace, 0, 2000, "sweep")
        process.send_signal(signal.SIGTERM)
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.1)
        assert _signalled_until_its_end(process) == 3
        if process.stderr is not None:
            *_, last = process.stderr.read().splitlines()
            assert last == b"ocsf-nft: stopped at once: pending events are not delivered"
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        if process.stderr is not None:
            process.stderr.close()


def _signalled_until_its_end(process: subprocess.Popen[bytes]) -> int:
    """Send a second signal; return the exit code.

    The run may have taken the first signal late, and ignores another one for a second. So the
    signal is repeated.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.5)
    raise AssertionError("the run does not end")


def test_signal_ends_a_run_without_reader_and_the_next_run_delivers_the_rest(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.5)  # the run is a fork of this process
    reader, writer = os.pipe()
    options = _watch(lab, state)[len(command.COMMAND) + 1 :]
    with (
        open(reader, "rb"),  # noqa: PTH123 - a pipe
        open(writer, "wb") as pipe,  # noqa: PTH123
        command.running(*options, "--install", stdout=pipe) as running,
    ):
        pipe.close()
        attempts.attempt(lab.sandbox_namespace, 0, 2000, "sweep")
        # It ends although a thread still waits for the reader.
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert "events wait in the store for the next run" in messages
    shown = command.run("events", "--state-dir", str(state.path), "--sinks")
    assert shown.stdout.startswith("-: ")
    assert not shown.stdout.startswith("-: 0 events")


@pytest.mark.usefixtures("endless_drain")
def test_second_signal_ends_a_run_that_can_not_report_it(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Path("/dev/full").open("wb") as full:
        process = _start([*_watch(lab, state), "--install", "--output", str(pipe)], stderr=full)
    try:
        _read_until(reader, b"}\n")
        attempts.attempt(lab.sandbox_namespace, 0, 2000, "sweep")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.1)
        assert _signalled_until_its_end(process) == 3
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_standard_error_without_reader_blocks_neither_the_run_nor_its_stop(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*_watch(lab, state), "--install", "--output", str(output)], stderr=writer
    )
    try:
        _read_until(reader, _READY)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        # Each change is an event and a log entry; the second event follows the first entry.
        for number in (1, 2):
            ip("-n", lab.sandbox, "link", "add", f"a{number}", "type", "veth", "peer", f"b{number}")
            end = time.monotonic() + 60
            while output.read_bytes().count(b"its interfaces changed") < number:
                assert time.monotonic() < end
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def _read_until(descriptor: int, words: bytes) -> None:
    read = b""
    while words not in read:
        assert select.select([descriptor], [], [], 60)[0], read
        chunk = os.read(descriptor, 4096)
        assert chunk, read
        read += chunk


def test_a_hang_up_drains_as_a_stop_does_unless_nohup_runs_it(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    options = (*_watch(lab, state)[len(command.COMMAND) + 1 :], "--output", str(output))
    with command.running(*options, "--install") as running:
        attempts.attempt(lab.sandbox_namespace, 0, 100, "udp4")
        code, messages = running.stop(signal.SIGHUP)
    assert code == 0, messages
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert sum(e["count"] for e in events if e["class_uid"] == 4001 and "actor" in e) == 100
    with command.running(*options, "--install", under=("nohup",)) as running:
        running.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.5)
        assert running.stop(signal.SIGTERM)[0] == 0
