"""Delivery of the events of a run while disks, files and processes fail."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.delivery import backoff, sink_db
from ocsf_nft.fence import verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service import delivery_start
from ocsf_nft.state import retry_until_writable
from ocsf_nft.state.state_db import FILE
from tests.kernel import accounts, attempts, command, conftest, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

PORTS = 40


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the retry intervals of runs, which are forks of this process."""
    monkeypatch.setattr(retry_until_writable, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)


@pytest.fixture
def quick_end() -> Iterator[pytest.MonkeyPatch]:
    """Shorten the time that an ending run waits for a disk that accepts no data.

    Undo the yielded patch before a run that must deliver its events.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry_until_writable, "_SHUTDOWN_GRACE_SECONDS", 0.5)
        patch.setattr(delivery_start, "DRAIN_SECONDS", 0.5)
        yield patch


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small separate disk, which a test can fill or make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk to the last byte; return the file that fills it."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (4096, 1):
            while True:
                file.write(b"\0" * size)
    return path


def options(lab: Lab, state: StateDirectory, output: Path) -> list[str]:
    return [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox, "--proxy", "10.200.0.1:3128"),
        *("--state-dir", str(state.path), "--output", str(output)),
    ]


def counted_so_far(path: Path) -> Counter[tuple[int, int]]:
    """Count the reported packets by user and port, while the run may write; ignore duplicates."""
    return _attempts(written.so_far(path))


def counted(path: Path) -> Counter[tuple[int, int]]:
    """Count the reported packets by user and port after the run has ended; ignore duplicates."""
    return _attempts(written.events(path))


def _attempts(events: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for event in written.distinct(events):
        if event["class_uid"] == 4001 and event["dst_endpoint"].get("ip") == attempts.INTERNET4:
            uid, port = int(event["actor"]["user"]["uid"]), event["dst_endpoint"]["port"]
            found[uid, port] += event["count"]
    return found


def wait_for(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.02)


def sweep(lab: Lab, uid: int) -> Counter[tuple[int, int]]:
    """Try each of PORTS ports once as a user; return the expected counts."""
    attempts.attempt(lab.sandbox_namespace, uid, PORTS, "sweep")
    return Counter({(uid, port): 1 for port in range(1, PORTS + 1)})


def test_sink_with_a_full_disk_retries_until_there_is_space(
    lab: Lab, state: StateDirectory, disk: Path
) -> None:
    output = disk / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        ballast = fill(disk)
        second = sweep(lab, 1002)
        running.wait_for_message("sink down")
        time.sleep(0.5)  # the sink retries meanwhile, and logs no second line
        assert running.process.poll() is None
        assert counted_so_far(output) != first + second
        ballast.unlink()
        wait_for(lambda: counted_so_far(output) == first + second)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert messages.count("sink down") == 1
    assert "No space left on device" in messages
    assert messages.count("sink works again") == 1
    assert counted(output) == first + second


def test_events_blocked_by_a_full_disk_are_delivered_by_the_next_run(
    lab: Lab, state: StateDirectory, disk: Path, quick_end: pytest.MonkeyPatch
) -> None:
    output = disk / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        ballast = fill(disk)
        expected = sweep(lab, 1001)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert "events wait in the store for the next run" in messages
    ballast.unlink()
    quick_end.undo()
    with command.running(*options(lab, state, output), "--install") as running:
        wait_for(lambda: counted_so_far(output) == expected)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert counted(output) == expected
    folder, database = state.path / conftest.SANDBOX, sink_db.path_of(Path(FILE))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    inner = {f"{database.parent}/{name}" for name in (database.name, f".{database.name}.lock")}
    assert found == {FILE, f".{FILE}.lock", str(database.parent)} | inner
    shown = command.run("events", "--sinks", "--state-dir", str(state.path))
    assert ": 0 events wait" in shown.stdout


def test_full_state_disk_pauses_reading_and_drops_no_count(
    lab: Lab, disk: Path, tmp_path: Path
) -> None:
    output, state = tmp_path / "events.jsonl", StateDirectory(disk / "state")
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        ballast = fill(disk)
        second = sweep(lab, 1002)
        running.wait_for_message("the state can't be stored")
        time.sleep(0.5)
        assert running.process.poll() is None
        assert counted(output) == first
        ballast.unlink()
        wait_for(lambda: counted_so_far(output) == first + second)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    # The delivery process has messages of its own, if its checkpoint came after the disk was full.
    own = [line for line in messages.splitlines() if "process=delivery" not in line]
    assert sum("the state can't be stored" in line for line in own) == 1
    assert sum("the state can be stored again" in line for line in own) == 1
    assert counted(output) == first + second


def test_run_stopped_on_a_full_disk_ends_with_a_sentence_and_the_next_run_reports_all(
    lab: Lab, disk: Path, tmp_path: Path, quick_end: pytest.MonkeyPatch
) -> None:
    output, state = tmp_path / "events.jsonl", StateDirectory(disk / "state")
    where = ("--state-dir", str(state.path))
    with command.running(*options(lab, state, output), "--install") as running:
        # Otherwise its first events may be delivered twice, since their delivery is not stored.
        wait_for(lambda: ": 0 events wait" in command.run("events", "--sinks", *where).stdout)
        ballast = fill(disk)
        expected = sweep(lab, 1001)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 3, messages
    assert "can't be written" in messages.splitlines()[-1]
    assert "make room" in messages.splitlines()[-1]
    assert "Traceback" not in messages
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
    ballast.unlink()
    quick_end.undo()
    with command.running(*options(lab, state, output)) as running:
        wait_for(lambda: counted_so_far(output) == expected)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert counted(output) == expected


@pytest.mark.parametrize("is_late", [False, True])
def test_fence_stays_on_if_a_full_disk_prevents_its_removal(
    lab: Lab, disk: Path, tmp_path: Path, quick_end: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    del quick_end
    output, state = tmp_path / "events.jsonl", StateDirectory(disk / "state")
    where = ("--state-dir", str(state.path))
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        wait_for(lambda: ": 0 events wait" in command.run("events", "--sinks", *where).stdout)
        ballast = fill(disk)
        if is_late:
            sweep(lab, 1002)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 3, messages
    assert "can't be written" in messages.splitlines()[-1]
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
    ballast.unlink()


@pytest.mark.parametrize("what", ["output", "state"])
def test_run_retries_while_a_disk_is_read_only(lab: Lab, tmp_path: Path, what: str) -> None:
    folders = {name: tmp_path / name for name in ("output", "state")}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    output, state = folders["output"] / "events.jsonl", StateDirectory(folders["state"])
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        # A disk in use can't be made read-only, so another one is mounted over it.
        over = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folders[what])]
        subprocess.run(over, check=True)
        try:
            second = sweep(lab, 1002)
            running.wait_for_message("Read-only file system")
            time.sleep(0.3)
            assert running.process.poll() is None
        finally:
            subprocess.run(["umount", str(folders[what])], check=True)
        wait_for(lambda: counted_so_far(output) == first + second)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert counted(output) == first + second


@pytest.mark.parametrize("what", ["output", "state"])
def test_run_retries_while_a_permission_is_missing(lab: Lab, tmp_path: Path, what: str) -> None:
    folders = {name: tmp_path / name for name in ("output", "state")}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    output, state = folders["output"] / "events.jsonl", StateDirectory(folders["state"])
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        folders[what].chmod(0)  # a run has dropped the capability to override it
        try:
            second = sweep(lab, 1002)
            running.wait_for_message("Permission denied")
            time.sleep(0.3)
            assert running.process.poll() is None
        finally:
            folders[what].chmod(0o700)
        wait_for(lambda: counted_so_far(output) == first + second)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert counted(output) == first + second


def test_store_deleted_under_a_run_is_restored(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        for path in filter(Path.is_file, (state.path / conftest.SANDBOX).rglob("*.sqlite3*")):
            path.unlink()
        second = sweep(lab, 1002)
        wait_for(lambda: counted_so_far(output) == first + second)
        running.process.kill()
        running.process.wait()
    assert (state.path / conftest.SANDBOX / FILE).exists()
    with command.running(*options(lab, state, output), "--install") as running:
        third = sweep(lab, 1003)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    # The kill may come between a write and its acknowledgement; then the file has the batch twice.
    assert _attempts(accounts.events_of(output)) == first + second + third


@pytest.mark.parametrize("seconds", [366 * 86_400, -366 * 86_400])
def test_clock_jump_drops_and_duplicates_no_event(
    lab: Lab, state: StateDirectory, tmp_path: Path, seconds: int
) -> None:
    output, clock, library = (tmp_path / name for name in ("events.jsonl", "clock", "clock.so"))
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    under = ["env", f"LD_PRELOAD={library}", f"CLOCK={clock}"]
    with command.running(*options(lab, state, output), "--install", under=under) as running:
        first = sweep(lab, 1001)
        wait_for(lambda: counted_so_far(output) == first)
        clock.write_text(str(seconds))
        second = sweep(lab, 1002)
        wait_for(lambda: counted_so_far(output) == first + second)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert counted(output) == first + second
    times = [event["time"] for event in written.events(output)]
    assert max(times) - min(times) > 300 * 86_400 * 1000
