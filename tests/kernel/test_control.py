"""Control API of a run, used by commands, by curl and by the Python client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ocsf_nft
from ocsf_nft.config import SandboxConfig
from ocsf_nft.fence import verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from ocsf_nft.service.account_loop import AccountLoop
from tests.kernel import namespaces
from tests.kernel.accounts import until as wait_until
from tests.kernel.command import COMMAND, run, running
from tests.kernel.conftest import nft
from tests.kernel.namespaces import PROXY, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.command import Outcome, Running

pytestmark = pytest.mark.kernel


class Host:
    """A run with a control socket, and the files of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self.state = folder / "state"
        self.config = folder / "ocsf-nft.toml"
        self.config.write_text(
            f'control = "{self.control}"\noutput = "{folder}/events.jsonl"\n'
            f'state_dir = "{self.state}"\n'
        )

    def run(self, command: str, *arguments: str) -> Any:
        """Run a command that succeeds, and return its JSON answer."""
        done = run(command, *arguments, "--json", "--control", str(self.control))
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def events(self) -> list[dict[str, Any]]:
        text = (self.folder / "events.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        yield Host(Path(folder))


@pytest.fixture
def service(host: Host) -> Iterator[Running]:
    with running("--config", str(host.config)) as made:
        yield made


@pytest.fixture
def names() -> Iterator[tuple[str, ...]]:
    """Yield the names of three namespaces that exist."""
    with namespaces.names(3) as found:
        for name in found:
            namespaces.make(name)
        yield found


def test_commands_add_change_show_and_release_a_sandbox(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    name = names[0]
    added = host.run("add", name, "--netns", name, "--proxy", PROXY, "--label", "team=search")
    assert added["sandbox"]["state"] == "active"
    assert connect(name, 443, 444) == {443: "refused", 444: "refused"}
    opened = ("--allow", "tcp:203.0.113.7:443")
    dry = run("set", name, *opened, "--dry-run", "--control", str(host.control))
    assert dry.stdout == "allow: added tcp:203.0.113.7:443\n"
    assert connect(name, 443) == {443: "refused"}
    changed = host.run("set", name, *opened)
    assert changed["changes"] == ["allow: added tcp:203.0.113.7:443"]
    assert connect(name, 443)[443] != "refused"
    shown = host.run("show", name)
    assert shown["policy"] == {
        "netns": name, "proxy": [PROXY], "allow": ["tcp:203.0.113.7:443"],
        "labels": {"team": "search"},
    }  # fmt: skip
    (egress,) = (each for each in shown["counts"] if each["rule"] == "egress")
    assert (egress["refused"], egress["counter_mismatch"]) == (3, 0)
    final = host.run("release", name)
    assert [each["refused"] for each in final["counts"] if each["rule"] == "egress"] == [3]
    assert nft(named(name), "list", "ruleset") == ""
    code, _ = service.stop(signal.SIGTERM)
    assert code == 0
    assert not host.control.exists()
    attempts = [event for event in host.events if event["class_uid"] == 4001]
    assert sum(event["count"] for event in attempts) == 3
    changes = [event for event in host.events if event["class_uid"] == 5019]
    callers = {event.get("actor", {}).get("process", {}).get("user", {}).get("uid")
               for event in changes}  # fmt: skip
    assert callers == {"0"}, "each change names its caller"


async def test_client_adds_changes_and_releases_sandboxes_at_the_same_time(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    async with ocsf_nft.Client(host.control) as client:

        async def live(name: str) -> int:
            await client.put(name, netns=name, proxy=[PROXY])
            assert await asyncio.to_thread(connect, name, 443) == {443: "refused"}
            with pytest.raises(ocsf_nft.ConflictError, match="group of sandbox"):
                await client.put(name, netns=name, proxy=[PROXY], group=77)
            await client.put(name, netns=name, proxy=[PROXY], permissive=True)
            async for event in client.events(sandbox=name, follow=True):
                if event["class_uid"] == 4001:
                    break
            final = await client.release(name)
            return sum(each["refused"] for each in final["counts"])

        async with asyncio.timeout(60):
            assert await asyncio.gather(*map(live, names)) == [1, 1, 1]
        with pytest.raises(ocsf_nft.AbsentError, match="no network namespace"):
            await client.put("x", netns="ocsf-nft-none", proxy=[PROXY])
        with pytest.raises(ocsf_nft.UsageError, match="needs --proxy"):
            await client.put("x", netns=names[0])
        assert await client.sandboxes() == []
        status = await client.status()
        assert (status["pid"], status["faults"]) == (service.process.pid, [])


async def test_paths_that_are_no_namespaces_harm_no_other_sandbox(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    fifo = host.folder / "fifo"
    os.mkfifo(fifo)
    paths = (str(fifo), str(host.folder), str(host.control), "/dev/zero")
    async with ocsf_nft.Client(host.control) as client, asyncio.timeout(60):
        for number in range(4 * len(paths)):
            with pytest.raises(ocsf_nft.AbsentError, match="another kind of file"):
                await client.put(f"s{number}", netns=paths[number % len(paths)], proxy=[PROXY])
        with pytest.raises(ocsf_nft.UsageError, match="uts is no network namespace"):
            await client.put("s", netns="/proc/self/ns/uts", proxy=[PROXY])
        added = await client.put(names[0], netns=names[0], proxy=[PROXY])
        assert added["sandbox"]["state"] == "active"
        await client.release(names[0])
        assert await client.sandboxes() == []
    code, _ = await asyncio.to_thread(service.stop, signal.SIGTERM)
    assert code == 0


def test_curl_gets_answers_and_problems(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    def curl(method: str, target: str, *options: str) -> tuple[str, Any]:
        done = subprocess.run(
            ["curl", "-sS", "--unix-socket", host.control, "-X", method, "-w", "\n%{http_code}",
             f"http://localhost{target}", *options],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        *answer, status = done.stdout.split("\n")
        return status, json.loads("".join(answer))

    assert service.process.poll() is None
    body = json.dumps({"netns": names[0], "proxy": [PROXY]})
    target = f"/v1/sandboxes/{names[0]}"
    assert curl("PUT", target, "-d", body)[0] == "201"
    assert curl("PUT", target, "-d", body) == (
        "200", {"changes": [], "sandbox": curl("GET", "/v1/sandboxes")[1]["sandboxes"][0]},
    )  # fmt: skip
    large = host.folder / "large"
    large.write_bytes(b" " * (10 << 20))
    status, problem = curl("PUT", target, "--data-binary", f"@{large}")
    assert (status, problem["status"]) == ("413", 413)
    assert curl("DELETE", target)[0] == "200"
    assert curl("DELETE", target)[0] == "404"


def test_sandboxes_come_back_after_a_kill_and_their_socket_is_replaced(
    host: Host, names: tuple[str, ...]
) -> None:
    with running("--config", str(host.config)) as service:
        host.run("add", names[0], "--netns", names[0], "--proxy", PROXY)
        service.process.kill()
        service.process.wait()
    assert host.control.exists()
    absent = run("list", "--control", str(host.control))
    assert (absent.code, "no service listens" in absent.sentence) == (2, True)
    with running("--config", str(host.config)) as service:
        shown = host.run("show", names[0])
        assert (shown["state"], shown["origin"]) == ("active", "api")
        second = run("run", "--config", str(host.config))
        assert second.code == 2
        assert "another service listens" in second.sentence
        assert host.run("show", names[0])["state"] == "active"
        host.run("release", names[0])


def test_sandbox_of_the_file_is_shown_and_can_t_be_changed(
    host: Host, names: tuple[str, ...]
) -> None:
    with host.config.open("a") as file:
        file.write(
            f'[[sandbox]]\nname = "{names[0]}"\nnetns = "{names[0]}"\nproxy = ["{PROXY}"]\n'
            "install = true\n"
        )
    with running("--config", str(host.config)):
        shown = host.run("show", names[0])
        assert (shown["origin"], shown["policy"]["install"]) == ("file", True)
        for command in (("set", names[0], "--permissive"), ("release", names[0])):
            refused = run(*command, "--control", str(host.control))
            assert refused.code == 2, refused.stderr
        state = StateDirectory(host.state)
        assert verification.verify(names[0], state).verdict == "as installed"


def test_events_and_status_are_the_same_from_the_service_and_from_its_files(
    host: Host, service: Running, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCSF_NFT_CONTROL", str(host.folder / "none"))
    for name in names[:2]:
        host.run("add", name, "--netns", name, "--proxy", PROXY)
        assert connect(name, 443) == {443: "refused"}
    nft(named(names[1]), "add", "rule", "inet", "ocsf_nft", "output", "accept")
    command = ("status", "--sandbox", names[0])
    files = ("--state-dir", str(host.state))
    of_service = ("--control", str(host.control), *files)
    # Both sandboxes are compared: nothing of either may change meanwhile. The kernel has the rule
    # some time before the service knows of it.
    wait_until(lambda: _is_settled(run("status", "--json", *files), 2))
    wait_until(lambda: _is_settled(run("status", "--json", *of_service), 2))
    for each in (command, ("status",), (*command, "--json"), ("status", "--metrics"),
                 ("events", "--sandbox", names[0]), ("tail",)):  # fmt: skip
        with_service, without = run(*each, *of_service), run(*each, *files)
        assert with_service == without, each
    assert service.process.poll() is None


async def test_status_of_a_service_names_missing_counters(
    host: Host, service: Running, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCSF_NFT_CONTROL", str(host.folder / "none"))
    name = names[0]
    async with ocsf_nft.Client(host.control) as client:
        await client.put(name, netns=name, proxy=[PROXY], self_heal=False)
        assert (await client.sandbox(name))["missing_counters"] == []
        await asyncio.to_thread(nft, named(name), "delete", "table", "inet", "ocsf_nft")
        command = ("status", "--control", str(host.control))
        await asyncio.to_thread(wait_until, lambda: run(*command).code == 2)
        shown = await client.sandbox(name)
    assert shown["missing_counters"] == ["egress", "forward", "ingress"]
    done = run(*command)
    assert (done.code, "no counters for egress, forward, ingress" in done.stderr) == (2, True)
    assert service.process.poll() is None


def _is_settled(done: Outcome, reported: int) -> bool:
    is_restored = all(row["verdict"] == "as installed" for row in done.events)
    return is_restored and _reported(done) == reported


def _reported(done: Outcome) -> int:
    return sum(row["reported"] for row in done.events if row["rule"] == "egress")


async def test_status_of_one_sandbox_reads_the_counters_of_no_other(
    tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control.sock"
    config = ocsf_nft.parse({"control": str(control), "state_dir": str(tmp_path)}, where="test")
    read: list[str] = []
    async with ocsf_nft.Service(config) as service:
        for name in names[:2]:
            keys = {"name": name, "netns": name, "proxy": [PROXY], "install": True}
            await service.put(SandboxConfig.model_validate(keys))

        async def refresh(self: AccountLoop) -> None:
            read.append(self.sandbox)

        monkeypatch.setattr(AccountLoop, "refresh", refresh)
        found = await service.status(names[0])
        assert found is not None
        assert (found.sandbox, found.absent, read) == (names[0], (), [names[0]])
        with pytest.raises(ocsf_nft.AbsentError):
            await service.status(names[2])
        monkeypatch.undo()
        for name in names[:2]:
            await service.release(name)


def test_set_does_not_overwrite_a_change_that_it_has_not_seen(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    name = names[0]
    host.run("add", name, "--netns", name, "--proxy", PROXY)
    changes = [
        ("set", name, "--label", f"k{number}=v", "--control", str(host.control))
        for number in range(8)
    ]
    with ThreadPoolExecutor(len(changes)) as pool:
        done = list(pool.map(lambda each: run(*each), changes))
    kept = host.run("show", name)["policy"]["labels"]
    assert service.process.poll() is None
    assert {f"k{number}" for number, each in enumerate(done) if each.code == 0} == set(kept)
    for each in done:
        assert each.code == 0 or "changed meanwhile" in each.stderr


def test_watch_shows_the_attempts_of_a_sandbox_until_its_release(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    name = names[0]
    host.run("add", name, "--netns", name, "--proxy", PROXY)
    with subprocess.Popen(
        [*COMMAND, "watch", name, "--control", host.control],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        assert "fence" in watching.stdout.readline()
        assert connect(name, 443) == {443: "refused"}
        line = watching.stdout.readline()
        assert "TCP 203.0.113.7:443 https  blocked" in line
        host.run("release", name)
        rest, messages = watching.communicate(timeout=20)
    assert "was released" in rest.splitlines()[-1]
    assert (watching.returncode, messages) == (0, f"sandbox {name} has ended\n")
    assert service.process.poll() is None


def test_reload_by_the_api_applies_the_file(host: Host, service: Running) -> None:
    host.config.write_text(
        host.config.read_text().replace("events.jsonl", "others.jsonl"), encoding="utf-8"
    )
    done = subprocess.run(
        ["curl", "-sS", "--unix-socket", host.control, "-X", "POST", "http://x/v1/reload"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"reloaded": True}
    assert (host.folder / "others.jsonl").exists()
    host.config.write_text(host.config.read_text() + "colour = 1\n", encoding="utf-8")
    done = subprocess.run(
        ["curl", "-sS", "--unix-socket", host.control, "-X", "POST", "http://x/v1/reload"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "there is no key colour" in json.loads(done.stdout)["detail"]
    assert service.process.poll() is None


def test_unfenced_namespaces_are_listed(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    host.run("add", names[0], "--netns", names[0], "--proxy", PROXY)
    options = ("--unfenced", "--state-dir", str(host.state))
    done = run("list", *options, "--json")
    assert done.code == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    verdicts = {path: each["verdict"] for each in found for path in each["paths"]}
    expected = {f"/run/netns/{name}": "unfenced" for name in names[1:]}
    assert {path: verdicts.get(path) for path in expected} == expected
    assert f"/run/netns/{names[0]}" not in verdicts
    table = run("list", *options)
    # A longer name of another namespace on this machine makes the column wider.
    assert re.search(rf"^/run/netns/{names[1]} +unfenced", table.stdout, re.MULTILINE)
    assert "has no table inet ocsf_nft" in table.stdout
    assert service.process.poll() is None
    refused = run("list", "--state-dir", str(host.state))
    assert "--state-dir and --config are for --unfenced" in refused.sentence


async def test_adding_and_releasing_is_quick(
    host: Host, service: Running, names: tuple[str, ...]
) -> None:
    seconds = []
    async with ocsf_nft.Client(host.control) as client:
        for _ in range(5):
            begun = time.monotonic()
            await client.put(names[0], netns=names[0], proxy=[PROXY])
            added = time.monotonic()
            await client.release(names[0])
            seconds.append((added - begun, time.monotonic() - added))
    assert service.process.poll() is None
    assert min(each for each, _ in seconds) < 1
    assert min(each for _, each in seconds) < 1
