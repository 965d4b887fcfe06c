"""Listing, filtering, following and resending of stored events."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.cli import stored_events
from ocsf_nft.cli.stored_events import StoreSelection
from ocsf_nft.delivery.sink_db import RefusedEvent
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE
from tests.cli import forked
from tests.cli.parsed import context_of
from tests.conformance.spoiling import GOOD
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Different events of each kind, in the order of their times.
STORED: list[dict[str, Any]] = [
    event
    | {"time": 1_000_000_000_000 + number * 60_000}
    | {"metadata": event["metadata"] | {"uid": f"uid-{number}"}}
    for number, event in enumerate(GOOD.values())
]


def lines(found: Iterable[dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps(event) for event in found]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Create a state directory with the stores of two runs; a sink has refused one event."""
    asyncio.run(_fill(tmp_path))
    return tmp_path


async def _fill(folder: Path) -> None:
    async with Store(folder / FILE) as store:
        await store.register(["siem", "lake"])
        await store.put(lines(STORED[::2]))
        (refused, *_) = lines(STORED)
        await store.acknowledge("siem", 2, [RefusedEvent("uid-0", refused, "bad\x1b[2J field")])
    async with Store(folder / "sb1" / FILE) as store:
        await store.register(["-"])
        await store.put(lines(STORED[1::2]))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return forked.run("events", *arguments)


def uids(done: subprocess.CompletedProcess[str]) -> list[str]:
    said = "" if done.stdout else "no stored event matches\n"
    assert (done.returncode, done.stderr) == (0, said)
    return [orjson.loads(line)["metadata"]["uid"] for line in done.stdout.splitlines()]


def test_all_stores_of_a_state_directory_are_listed_together(state: Path) -> None:
    done = run("--state-dir", state, "--format", "jsonl")
    assert set(uids(done)) == {event["metadata"]["uid"] for event in STORED}
    alone = run("--store", state / "sb1" / FILE, "--format", "jsonl")
    assert uids(alone) == [event["metadata"]["uid"] for event in STORED[1::2]]


def test_exported_events_are_the_stored_ones(state: Path) -> None:
    done = run("--store", state / FILE, "--lines", "0", "--format", "jsonl")
    assert done.stdout.encode().splitlines() == lines(STORED[::2])


def test_last_events_are_shown_in_their_order(state: Path) -> None:
    done = run("--store", state / FILE, "-n", "2", "--format", "jsonl")
    assert uids(done) == [event["metadata"]["uid"] for event in STORED[::2]][-2:]


def test_each_event_is_shown_as_one_line(state: Path) -> None:
    done = run("--state-dir", state)
    assert len(done.stdout.splitlines()) == len(STORED)
    assert not done.stdout.startswith("{")


@pytest.mark.parametrize(
    ("options", "is_selected"),
    [
        (("--class", "network_activity"), lambda event: event["class_uid"] == 4001),
        (("--class", "2004", "--class", "5019"), lambda event: event["class_uid"] in {2004, 5019}),
        (("--severity", "high"), lambda event: event["severity_id"] >= 4),
        (("--uid", "uid-3"), lambda event: event["metadata"]["uid"] == "uid-3"),
        (("--since", "2001-09-09T01:49:40+00:00"), lambda event: event["time"] >= 1000000180000),
        (("--until", "2001-09-09T01:49:40+00:00"), lambda event: event["time"] < 1000000180000),
        (("--since", "12h"), lambda _: False),
        (("--sandbox", "no-such"), lambda _: False),
    ],
)
def test_events_that_match_all_filters_are_shown(
    state: Path, options: tuple[str, ...], is_selected: Any
) -> None:
    done = run("--state-dir", state, "--lines", "0", "--format", "jsonl", *options)
    expected = {event["metadata"]["uid"] for event in STORED if is_selected(event)}
    assert set(uids(done)) == expected


def test_events_are_shown_in_another_version(state: Path) -> None:
    done = run("--state-dir", state, "--format", "jsonl", "--ocsf-version", "1.1")
    versions = {orjson.loads(line)["metadata"]["version"] for line in done.stdout.splitlines()}
    assert versions == {"1.1.0"}


def test_new_events_are_followed_also_in_a_recreated_store(state: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ocsf_nft", "events", "--state-dir", state, "-n", "100", "-f",
         "--format", "jsonl"], stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        killing = threading.Timer(20, process.kill)
        killing.start()
        try:
            assert process.stdout is not None
            for _ in STORED:
                process.stdout.readline()
            new = STORED[0] | {"metadata": STORED[0]["metadata"] | {"uid": "new"}}
            asyncio.run(_put(state / "sb1" / FILE, lines([new])))
            assert orjson.loads(process.stdout.readline()) == new
            # Somebody removes the store, and the next run creates a new one.
            shutil.rmtree(state / "sb1")
            newer = STORED[0] | {"metadata": STORED[0]["metadata"] | {"uid": "newer"}}
            asyncio.run(_put(state / "sb1" / FILE, lines([newer])))
            assert orjson.loads(process.stdout.readline()) == newer
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            killing.cancel()
            process.kill()


@pytest.mark.parametrize("number", [None, 2])
def test_events_stored_during_the_listing_are_left_to_follow(
    state: Path, number: int | None
) -> None:
    shown: list[bytes] = []

    def write(found: Iterable[bytes]) -> bool:
        for line in found:
            if not shown:
                new = STORED[0] | {"metadata": STORED[0]["metadata"] | {"uid": "new"}}
                asyncio.run(_put(state / FILE, lines([new])))
            shown.append(line)
        return True

    with Archive(state / FILE) as archive:
        events = StoreSelection([archive], lambda _: True, write)
        asyncio.run(_put(state / FILE, lines([STORED[1]])))
        events.last(number)
    assert shown == lines(STORED[::2])[-(number or len(STORED)) :]


def test_events_follow_with_no_lines_shows_only_new_events(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("ocsf_nft.cli.events")
    (new,) = _events("new")
    shown: list[bytes] = []

    def sleep(_seconds: float) -> None:
        if shown:
            raise KeyboardInterrupt
        asyncio.run(_put(state / FILE, [new]))

    monkeypatch.setattr(stored_events, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(module.output, "write", shown.append)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    _follow(state, "--lines=0")
    assert b"".join(shown) == new + b"\n"


def test_events_follow_can_be_ended_from_the_first_line_on(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("ocsf_nft.cli.events")
    calls: list[str] = []

    def write(_part: bytes) -> None:
        calls.append("write")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.output, "write", write)
    monkeypatch.setattr(module.signal, "signal", lambda *_: calls.append("signal"))
    _follow(state)
    assert calls == ["signal", "write"]


def _follow(state: Path, *arguments: str) -> None:
    given = [f"--state-dir={state}", "--follow", "--format=jsonl", *arguments]
    with context_of("events", given) as context:
        context.command.invoke(context)


async def _put(path: Path, events: list[bytes]) -> None:
    async with Store(path) as store:
        await store.put(events)


def test_each_sink_shows_its_backlog(state: Path) -> None:
    done = run("--state-dir", state, "--sinks")
    waiting = len(STORED[::2])
    assert done.stdout.splitlines() == [
        f"lake: {waiting} events wait  [{state / FILE}]",
        f"siem: {waiting - 2} events wait, 1 refused (--dead)  [{state / FILE}]",
        f"-: {len(STORED[1::2])} events wait  [{state / 'sb1' / FILE}]",
    ]


def test_dead_letters_are_shown_with_their_reason(state: Path) -> None:
    done = run("--state-dir", state, "--dead")
    assert done.stdout.count("\n") == 1
    assert "siem  uid-0  bad" in done.stdout
    assert "\x1b" not in done.stdout
    letter = orjson.loads(run("--state-dir", state, "--dead", "--format", "jsonl").stdout)
    assert (letter["sink"], letter["event"]) == ("siem", STORED[0])
    for others in (
        ("--sink", "lake"),
        ("--sandbox", "no-such"),
        ("--uid", "uid-1"),
        ("--since", "12h"),
    ):
        done = run("--state-dir", state, "--dead", *others)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "no dead letter matches\n")


def test_dead_letters_are_marked_for_resending(state: Path) -> None:
    done = run("--state-dir", state, "--dead", "--retry")
    assert done.returncode == 0
    assert done.stderr.startswith("1 dead letter is to be sent again")
    assert "(to be sent again)" in run("--state-dir", state, "--dead").stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--retry",), "give --dead as well"),
        (("--sink", "a"), "give --dead as well"),
        (
            ("--dead", "--retry", "--sandbox", "a"),
            "--retry selects dead letters by --sink and --uid only",
        ),
        (
            ("--dead", "--retry", "--since", "1s"),
            "--retry selects dead letters by --sink and --uid only",
        ),
        (("--dead", "--sinks"), "give one"),
        (("--class", "x\x1b"), '--class "x\\x1b" is not known: give one of network_activity'),
        (("--severity", "odd"), '--severity "odd" is unknown: give one of critical'),
        (("--since", "yesterday"), '--since "yesterday" is no time'),
        (("--store", "/no/such"), "/no/such does not exist"),
        (("--state-dir", "/no/such"), "holds no events"),
        (("--format", "xml"), "jsonl, shorthand, syslog"),
    ],
)
def test_bad_usage_is_one_sentence(state: Path, options: tuple[str, ...], sentence: str) -> None:
    scope = () if "--state-dir" in options else ("--state-dir", str(state))
    done = run(*scope, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _events(*names: str) -> list[bytes]:
    good = STORED[0]
    return lines(good | {"metadata": good["metadata"] | {"uid": name}} for name in names)


def test_events_of_all_stores_are_in_the_order_in_which_they_were_stored(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(21)]
    for number in range(0, 21, 3):
        path = tmp_path / f"sb{number % 2}" / FILE
        path.parent.mkdir(exist_ok=True)
        asyncio.run(_put(path, _events(*names[number : number + 3])))
        time.sleep(0.005)  # the order has a resolution of milliseconds
    for options, shown in (
        ((), names[1:]),
        (("-n", "0"), names),
        (("-n", "21"), names),
        (("-n", "5"), names[-5:]),
        (("-n", "1"), names[-1:]),
    ):
        assert uids(run("--state-dir", tmp_path, "--format", "jsonl", *options)) == shown, options


def test_dead_letters_of_all_stores_are_filtered_and_counted(tmp_path: Path) -> None:
    async def fill(path: Path, *names: str) -> None:
        path.parent.mkdir(exist_ok=True)
        async with Store(path) as store:
            await store.register(["siem"])
            await store.put(_events(*names))
            refused = zip(names, _events(*names), strict=True)
            await store.acknowledge(
                "siem", len(names), [RefusedEvent(*each, "no") for each in refused]
            )

    asyncio.run(fill(tmp_path / FILE, "a", "b", "c"))
    asyncio.run(fill(tmp_path / "sb1" / FILE, "d"))

    def dead(*options: str) -> list[tuple[str, bool]]:
        done = run("--state-dir", tmp_path, "--dead", "--format", "jsonl", *options)
        letters = map(orjson.loads, done.stdout.splitlines())
        return [(each["uid"], each["is_again"]) for each in letters]

    assert dead() == [("a", False), ("b", False), ("c", False), ("d", False)]
    assert dead("--uid", "b") == [("b", False)]
    for options, message in (
        (("--uid", "b"), "1 dead letter is to be sent again"),
        (("--uid", "x"), "0 dead letters are to be sent again"),
    ):
        assert run("--state-dir", tmp_path, "--dead", "--retry", *options).stderr.startswith(
            message
        )
    assert dead() == [("a", False), ("b", True), ("c", False), ("d", False)]
    message = run("--state-dir", tmp_path, "--dead", "--retry", "--sink", "siem").stderr
    assert message.startswith("4 dead letters are to be sent again")


def test_store_of_a_configuration_file_is_read(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'state_dir = "{state}"\n')
    expected = run("--state-dir", state, "--format", "jsonl").stdout
    assert run("--config", file, "--format", "jsonl").stdout == expected != ""
    (store, *_) = sorted(state.glob("**/state-*.sqlite3"))
    file.write_text(f'state_dir = "/no/such"\n[store]\npath = "{store}"\n')
    of_store = run("--store", store, "--format", "jsonl").stdout
    assert run("--config", file, "--format", "jsonl").stdout == of_store != ""
    assert run("--config", tmp_path / "none.toml").returncode == 2
