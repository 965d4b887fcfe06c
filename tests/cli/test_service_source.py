"""Commands that read events and counts from a running service, or from its files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.cli import options
from ocsf_nft.state.state_db import FILE
from tests.cli import fork_server, forked
from tests.control.engine import HUGE, Served, serving, wait_until
from tests.control.test_event_stream import events, lines
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.cli.fork_server import ForkServer

_NOBODY = 65534


class Host:
    """A service with a state directory, and another directory, without a service."""

    def __init__(self, folder: Path, programs: ForkServer) -> None:
        self.folder = folder
        self.programs = programs
        self.state = folder / "state"
        self.other = folder / "other"
        for each in (folder, self.state, self.other):
            each.mkdir(exist_ok=True)
        self.control = self.state / "control.sock"
        self.stored = events(60)
        self.others = events(3)
        self.store: Store
        self.served: Served

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        end = lambda: self.store.state.database.end  # noqa: E731 - of the present store
        async with serving(self.control, store=self.state / FILE, end=end) as self.served:
            yield

    async def run(
        self, *arguments: str | Path, control: Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with ``control`` in the environment, which is no socket by default."""
        env = os.environ | {"OCSF_NFT_CONTROL": str(control or self.folder / "none")}
        env.pop("OCSF_NFT_STATE_DIR", None)
        if "user" in options:
            return await asyncio.to_thread(forked.run, *arguments, env=env, **options)
        stdin = options.get("input", "")
        return await asyncio.to_thread(self.programs.run, *arguments, env=env, stdin=stdin)

    async def uids(self, *arguments: str | Path, **options: Any) -> list[str]:
        done = await self.run("events", "--format", "jsonl", *arguments, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line)["metadata"]["uid"] for line in done.stdout.splitlines()]


def uids(found: list[dict[str, Any]]) -> list[str]:
    return [event["metadata"]["uid"] for event in found]


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkServer]:
    with fork_server.started() as server:
        yield server


@pytest.fixture
async def host(programs: ForkServer) -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        made = Host(Path(folder), programs)
        async with Store(made.other / FILE) as other:
            await other.put(lines(made.others))
        async with Store(made.state / FILE) as made.store:
            await made.store.put(lines(made.stored))
            async with made.serving():
                yield made


@pytest.mark.parametrize(
    "filters",
    [
        (),
        ("--lines", "0"),
        ("--lines", "3", "--class", "network_activity", "--class", "2004"),
        ("--severity", "high"),
        ("--since", "1h", "--until", "2099-01-01"),
        ("--sandbox", "sb1", "--format", "syslog"),
        ("--format", "jsonl", "--ocsf-version", "1.1.0", "--class", "network_activity"),
        ("--uid", "none"),
    ],
)
async def test_events_of_a_service_are_shown_as_those_of_its_store(
    host: Host, filters: tuple[str, ...]
) -> None:
    of_service = await host.run("events", "--control", host.control, *filters)
    of_store = await host.run("events", "--state-dir", host.state, *filters)
    assert of_service.returncode == 0, of_service.stderr
    assert (of_service.stdout, of_service.stderr) == (of_store.stdout, of_store.stderr)


async def test_service_is_used_only_for_its_own_state_directory(host: Host) -> None:
    mine, others = uids(host.stored)[-20:], uids(host.others)
    assert await host.uids(control=host.control) == mine
    assert await host.uids("--state-dir", host.other, control=host.control) == others
    same = host.folder / "link"
    same.symlink_to(host.state)
    assert await host.uids("--state-dir", same, control=host.control) == mine
    refused = await host.run("events", "--control", host.control, "--state-dir", host.other)
    assert (refused.returncode, "leave out --control" in refused.stderr) == (2, True)


async def test_service_of_a_configuration_file_is_used(host: Host) -> None:
    config = host.folder / "run.toml"
    config.write_text(f'control = "{host.control}"\nstate_dir = "{host.state}"\n')
    newest = uids(host.stored)[-20:]
    assert await host.uids("--config", config) == newest
    # Another store than that of the service.
    config.write_text(config.read_text() + f'[store]\npath = "{host.other / FILE}"\n')
    assert await host.uids("--config", config) == uids(host.others)
    # Without its key, the socket of the environment, if it is that of the same state directory.
    config.write_text(f'state_dir = "{host.other}"\n')
    assert await host.uids("--config", config, control=host.control) == uids(host.others)


async def test_files_are_read_if_no_service_listens(host: Host) -> None:
    stale = host.folder / "stale"
    async with serving(stale):
        (host.folder / "kept").hardlink_to(stale)
    (host.folder / "kept").rename(stale)
    for control in (stale, host.folder / "none", host.other / FILE):
        found = await host.uids("--state-dir", host.state, control=control)
        assert found == uids(host.stored)[-20:]
        found = await host.uids("--state-dir", host.state, "--control", control)
        assert found == uids(host.stored)[-20:]
        alone = await host.run("events", "--control", control)
        assert (alone.returncode, "no service listens" in alone.stderr) == (2, True)


async def test_files_are_read_if_the_service_hangs(host: Host) -> None:
    hung = host.folder / "hung"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(hung))
        listener.listen()
        done = await host.run("events", "--state-dir", host.state, control=hung)
    assert "its files are read meanwhile" in done.stderr
    assert (done.returncode, done.stdout.count("\n")) == (0, 20)


async def test_store_of_another_run_in_the_state_directory_is_shown_too(host: Host) -> None:
    folder = host.state / "sb1"
    folder.mkdir()
    more = events(2)
    async with Store(folder / FILE) as other:
        await other.put(lines(more))
    assert set(uids(more)) <= set(await host.uids(control=host.control))


async def test_delivery_is_always_read_from_the_store(host: Host) -> None:
    await host.store.register(["siem"])
    done = await host.run("events", "--sinks", "--state-dir", host.state, control=host.control)
    assert done.stdout == f"siem: 60 events wait  [{host.state / FILE}]\n"
    for option in ("--sinks", "--dead", f"--store={host.state / FILE}"):
        refused = await host.run("events", option, "--control", host.control)
        assert (refused.returncode, "can't be combined" in refused.stderr) == (2, True)


async def test_tail_shows_stored_events(host: Host) -> None:
    expected = (await host.run("events", "--lines", "5", "--state-dir", host.state)).stdout
    for source in (("--control", host.control), ("--state-dir", host.state)):
        done = await host.run("tail", "-n", "5", *source, input="")
        assert (done.returncode, done.stdout) == (0, expected)
    nothing = await host.run("tail", "-n", "0", "--control", host.control)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")
    refused = await host.run("tail", "x.jsonl", "--control", host.control)
    assert (refused.returncode, "PATH can't be combined" in refused.stderr) == (2, True)


async def test_report_of_a_service_is_that_of_its_store(host: Host) -> None:
    pages = []
    for source in (("--control", host.control), ("--state-dir", host.state)):
        done = await host.run("report", *source)
        assert (done.returncode, done.stderr) == (0, "")
        pages.append(done.stdout.partition("</header>")[2])
    assert pages[0] == pages[1]
    assert f"of {len(host.stored)} lines were used" in pages[0]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
async def test_user_who_may_only_connect_sees_the_events(host: Host) -> None:
    host.folder.chmod(0o755)
    host.state.chmod(0o711)  # it is also that of the socket here
    for file in host.state.glob("state*"):
        file.chmod(0o600)
    user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    refused = await host.run("events", control=host.control, **user)
    assert refused.returncode == 3
    assert "connecting to" in refused.stderr
    assert "or as a member of the socket's group" in refused.stderr
    os.chown(host.control, -1, _NOBODY)
    assert await host.uids(control=host.control, **user) == uids(host.stored)[-20:]
    status = await host.run("status", "--json", control=host.control, **user)
    assert (status.returncode, "watches no sandbox" in status.stderr) == (2, True)


async def test_status_of_a_service_has_all_its_counts(host: Host) -> None:
    for name in ("b", "a"):
        await host.run("add", name, "--proxy", "10.0.0.1:1", control=host.control)
    done = await host.run("status", "--json", control=host.control)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["sandbox"] for row in rows] == ["a", "b"]
    assert rows[0] == {
        "sandbox": "a", "rule": "egress", "mode": "enforcing", "refused": HUGE, "allowed": 0,
        "reported": 7, "aggregated": 0, "pending": 0, "dropped": 1, "fence": "enforcing",
        "counter_mismatch": HUGE - 7, "is_watched": True, "verdict": "as installed",
        "surroundings": [],
    }  # fmt: skip
    assert (done.returncode, "has no counters for forward" in done.stderr) == (2, True)
    one = await host.run("status", "--sandbox", "b", "--json", control=host.control)
    assert [json.loads(line) for line in one.stdout.splitlines()] == rows[1:]
    metrics = await host.run("status", "--metrics", control=host.control)
    assert 'gap_records_total{sandbox="a",source="nflog"} 2.0' in metrics.stdout
    unknown = await host.run("status", "--sandbox", "c", control=host.control)
    assert (unknown.returncode, "no record of sandbox c" in unknown.stderr) == (2, True)


async def test_follow_continues_after_a_restart_of_the_service(
    tmp_path: Path, programs: ForkServer
) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        host = Host(Path(folder), programs)
        async with Store(host.state / FILE) as host.store:
            await host.store.put(lines(host.stored[:5]))
            with (tmp_path / "shown").open("wb") as shown, (tmp_path / "said").open("wb") as said:
                async with host.serving():
                    process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
                        [sys.executable, "-m", "ocsf_nft", "events", "--follow", "-n", "2",
                         "--format", "jsonl", "--control", host.control],
                        stdout=shown, stderr=said,
                    )  # fmt: skip
                    await _wait_for(tmp_path / "shown", 2)
                    await host.store.put(lines(host.stored[5:8]))
                    await _wait_for(tmp_path / "shown", 5)
                await host.store.put(lines(host.stored[8:20]))
                await _wait_for(tmp_path / "said", 1)
                async with host.serving():
                    await host.store.put(lines(host.stored[20:]))
                    await _wait_for(tmp_path / "shown", 57)
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 20) == 0
        text = (tmp_path / "shown").read_text()
        assert [json.loads(line)["metadata"]["uid"] for line in text.splitlines()] == (
            uids(host.stored[3:])
        )
        assert (tmp_path / "said").read_text().splitlines()[:2] == [
            "the service has stopped: waiting until it runs again", "the service runs again",
        ]  # fmt: skip


async def _wait_for(path: Path, number: int) -> None:
    await wait_until(lambda: path.read_bytes().count(b"\n") >= number)


def test_help_names_the_default_socket() -> None:
    shown = forked.run("events", "--help", check=True).stdout
    assert str(options.DEFAULT_CONTROL) in re.sub(r"-\n\s+", "-", shown)
