"""Events on their way out of a run, whatever becomes of disks, files and processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.delivery import backoff, retry_until_writable
from ocsf_nft.delivery.event_db import FILE
from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service import sink_delivery
from tests.kernel import accounts, attempts, command, conftest, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

PORTS = 40


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the retry intervals of runs, which are forks of this process."""
    monkeypatch.setattr(retry_until_writable, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(backoff, "_FIRST_SECONDS", 0.05)


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time that an ending run waits for a disk that accepts no data."""
    monkeypatch.setattr(retry_until_writable, "_CLOSING_SECONDS", 0.5)
    monkeypatch.setattr(sink_delivery, "_DRAIN_SECONDS", 0.5)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own: one that is full, or read-only, may be made so."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
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


def told_so_far(path: Path) -> Counter[tuple[int, int]]:
    """The packets that were told, by user and port; no event comes twice."""
    return _attempts(written.so_far(path))


def told(path: Path) -> Counter[tuple[int, int]]:
    """The same once nobody writes any more."""
    return _attempts(written.events(path))


def _attempts(events: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for event in written.distinct(events):
        if event["class_uid"] == 4001 and event["dst_endpoint"].get("ip") == attempts.INTERNET4:
            uid, port = int(event["actor"]["user"]["uid"]), event["dst_endpoint"]["port"]
            found[uid, port] += event["count"]
    return found


def wait_for(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.02)


def sweep(lab: Lab, uid: int) -> Counter[tuple[int, int]]:
    """Try each of some ports once, as a user; what is to be told."""
    attempts.attempt(lab.sandbox_namespace, uid, PORTS, "sweep")
    return Counter({(uid, port): 1 for port in range(1, PORTS + 1)})


def test_a_full_disk_of_a_sink_is_waited_for(lab: Lab, state: StateDirectory, disk: Path) -> None:
    output = disk / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        ballast = fill(disk)
        second = sweep(lab, 1002)
        running.until_said("sink down")
        time.sleep(0.5)  # it tries again meanwhile, and logs no second line
        assert running.process.poll() is None
        assert told_so_far(output) != first + second
        ballast.unlink()
        wait_for(lambda: told_so_far(output) == first + second)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert said.count("sink down") == 1
    assert "No space left on device" in said
    assert said.count("sink is back") == 1
    assert told(output) == first + second


@pytest.mark.usefixtures("quick_end")
def test_what_a_full_disk_of_a_sink_keeps_out_comes_with_the_next_run(
    lab: Lab, state: StateDirectory, disk: Path
) -> None:
    output = disk / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        ballast = fill(disk)
        expected = sweep(lab, 1001)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert "events wait in the store for the next run" in said
    ballast.unlink()
    with command.running(*options(lab, state, output), "--install") as running:
        wait_for(lambda: told_so_far(output) == expected)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert told(output) == expected
    assert not list((state.path / conftest.SANDBOX).glob("*")), "nobody needs anything of it"


def test_a_full_disk_of_the_state_stops_the_reading_and_loses_no_count(
    lab: Lab, disk: Path, tmp_path: Path
) -> None:
    output, state = tmp_path / "events.jsonl", StateDirectory(disk / "state")
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        ballast = fill(disk)
        second = sweep(lab, 1002)
        running.until_said("nothing can be kept")
        time.sleep(0.5)
        assert running.process.poll() is None
        assert told(output) == first
        ballast.unlink()
        wait_for(lambda: told_so_far(output) == first + second)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert said.count("nothing can be kept") == 1
    assert said.count("the disk takes what is to be kept again") == 1
    assert told(output) == first + second


@pytest.mark.usefixtures("quick_end")
def test_a_run_that_is_to_end_on_a_full_disk_ends_in_a_sentence_and_the_next_one_tells_all(
    lab: Lab, disk: Path, tmp_path: Path
) -> None:
    output, state = tmp_path / "events.jsonl", StateDirectory(disk / "state")
    where = ("--state-dir", str(state.path))
    with command.running(*options(lab, state, output), "--install") as running:
        # Otherwise its first events may be delivered twice, since their delivery is not stored.
        wait_for(lambda: ": 0 events wait" in command.run("events", "--sinks", *where).stdout)
        ballast = fill(disk)
        expected = sweep(lab, 1001)
        code, said = running.stop(signal.SIGTERM)
    assert code == 3, said
    assert "can't be written" in said.splitlines()[-1]
    assert "make room" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert installer.verify(conftest.SANDBOX, state).verdict == "as installed"
    ballast.unlink()
    with command.running(*options(lab, state, output)) as running:
        wait_for(lambda: told_so_far(output) == expected)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert told(output) == expected


@pytest.mark.parametrize("what", ["output", "state"])
def test_a_disk_that_is_read_only_for_a_while_is_waited_for(
    lab: Lab, tmp_path: Path, what: str
) -> None:
    places = {name: tmp_path / name for name in ("output", "state")}
    for place in places.values():
        place.mkdir(mode=0o700)
    output, state = places["output"] / "events.jsonl", StateDirectory(places["state"])
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        # A disk that is in use can't be made read-only: another one comes over it.
        over = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(places[what])]
        subprocess.run(over, check=True)
        try:
            second = sweep(lab, 1002)
            running.until_said("Read-only file system")
            time.sleep(0.3)
            assert running.process.poll() is None
        finally:
            subprocess.run(["umount", str(places[what])], check=True)
        wait_for(lambda: told_so_far(output) == first + second)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert told(output) == first + second


@pytest.mark.parametrize("what", ["output", "state"])
def test_a_permission_that_is_lost_for_a_while_is_waited_for(
    lab: Lab, tmp_path: Path, what: str
) -> None:
    places = {name: tmp_path / name for name in ("output", "state")}
    for place in places.values():
        place.mkdir(mode=0o700)
    output, state = places["output"] / "events.jsonl", StateDirectory(places["state"])
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        places[what].chmod(0)  # a run has dropped the capability to override it
        try:
            second = sweep(lab, 1002)
            running.until_said("Permission denied")
            time.sleep(0.3)
            assert running.process.poll() is None
        finally:
            places[what].chmod(0o700)
        wait_for(lambda: told_so_far(output) == first + second)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert told(output) == first + second


def test_a_store_that_is_deleted_under_a_run_is_put_back(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*options(lab, state, output), "--install") as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        for path in (state.path / conftest.SANDBOX).glob("*.sqlite3*"):
            path.unlink()
        second = sweep(lab, 1002)
        wait_for(lambda: told_so_far(output) == first + second)
        running.process.kill()
        running.process.wait()
    assert (state.path / conftest.SANDBOX / FILE).exists()
    with command.running(*options(lab, state, output), "--install") as running:
        third = sweep(lab, 1003)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    # The kill may come between a write and its acknowledgement: then the file has the batch twice.
    assert _attempts(accounts.events_of(output)) == first + second + third


@pytest.mark.parametrize("seconds", [366 * 86_400, -366 * 86_400])
def test_a_clock_that_jumps_loses_and_doubles_nothing(
    lab: Lab, state: StateDirectory, tmp_path: Path, seconds: int
) -> None:
    output, clock, library = (tmp_path / name for name in ("events.jsonl", "clock", "clock.so"))
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    under = ["env", f"LD_PRELOAD={library}", f"CLOCK={clock}"]
    with command.running(*options(lab, state, output), "--install", under=under) as running:
        first = sweep(lab, 1001)
        wait_for(lambda: told_so_far(output) == first)
        clock.write_text(str(seconds))
        second = sweep(lab, 1002)
        wait_for(lambda: told_so_far(output) == first + second)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    assert told(output) == first + second
    times = [event["time"] for event in written.events(output)]
    assert max(times) - min(times) > 300 * 86_400 * 1000
