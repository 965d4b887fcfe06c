"""Interfaces of a run: metrics, health, service manager, reload, and the Python interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

import ocsf_nft
from ocsf_nft.errors import ClosedError, UsageError
from ocsf_nft.fence import installer, verification
from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from ocsf_nft.service import delivery_start, startup
from ocsf_nft.state.state_db import StateDatabase
from tests.kernel import attempts, command, conftest, written
from tests.kernel.test_delivery import wait_for
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.gate import Gate
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def port() -> int:
    return free_port()


def settings(lab: Lab, state: StateDirectory, **more: Any) -> dict[str, Any]:
    sandbox = {
        "name": conftest.SANDBOX,
        "netns": lab.sandbox,
        "proxy": [f"{GATEWAY4}:{PROXY_PORT}"],
        "install": True,
    }
    return {"sandbox": [sandbox], "state_dir": str(state.path)} | more


def write(path: Path, found: dict[str, Any]) -> Path:
    """Write a configuration file; JSON's notation of the values is valid TOML."""

    def lines(table: dict[str, Any]) -> str:
        return "".join(
            f"{key} = {json.dumps(value)}\n"
            for key, value in table.items()
            if not isinstance(value, dict) and not _is_tables(value)
        )

    text = lines(found)
    for key, value in found.items():
        if isinstance(value, dict):
            text += f"[{key}]\n{lines(value)}"
        elif _is_tables(value):
            text += "".join(f"[[{key}]]\n{lines(each)}" for each in value)
    path.write_text(text)
    return path


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


_KEY_LABELS = ("sink", "rule", "method")


def samples(text: str) -> dict[tuple[str, str], float]:
    """Return the values by the metric's name and the value of its first known label."""
    return {
        (sample.name, next(filter(None, map(sample.labels.get, _KEY_LABELS)), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_run_serves_its_metrics_and_its_health(
    lab: Lab, state: StateDirectory, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The run is a fork of this process. At its end it allows little time for the sink that is down.
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.5)
    output = tmp_path / "events.jsonl"
    down = {"type": "http", "name": "down", "url": "http://127.0.0.1:9/", "retry_seconds": 0.1}
    config = write(
        tmp_path / "config.toml",
        settings(
            lab, state, listen=f"127.0.0.1:{port}",
            sink=[{"path": str(output), "name": "file"}, down],
        ),
    )  # fmt: skip
    lab.sandbox_namespace.call(conftest.without_ipv6)
    with command.running("--config", str(config)) as running:
        attempts.attempt(lab.sandbox_namespace, 1001, 20, "sweep")
        wait_for(lambda: len(written.so_far(output)) > 20)
        found: dict[tuple[str, str], float] = {}

        def agrees() -> bool:
            nonlocal found
            code, text = get(port, "/metrics")
            assert code == 200
            found, written_events = samples(text), len(written.distinct(written.so_far(output)))
            return (
                found["ocsf_nft_sink_up", "down"] == 0
                and found["ocsf_nft_sink_delivered_events_total", "file"] == written_events
                and found["ocsf_nft_events_total", ""] == written_events
                and found["ocsf_nft_refused_packets_total", "egress"] >= 20
                and found["ocsf_nft_sink_waiting_events", "file"] == 0
                and found["ocsf_nft_sink_waiting_events", "down"] == written_events
            )

        wait_for(agrees)
        assert found["ocsf_nft_sink_failures_total", "down"] > 0
        assert found["ocsf_nft_fence_active", ""] == 1
        methods = [
            found["ocsf_nft_attribution_method", each] for each in ("capture", "socket", "user")
        ]
        assert sorted(methods) == [0, 0, 1]
        assert found["ocsf_nft_capture_dropped_events_total", ""] == 0
        assert 0 < found["ocsf_nft_store_bytes", ""] < found["ocsf_nft_store_max_bytes", ""]
        assert get(port, "/healthz") == (200, "well\n")
        code, text = get(port, "/readyz")
        assert code == 200, "a sink that is down is another one's trouble"
        assert text.startswith("sink down is down: ")
        assert get(port, "/other")[0] == 404
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages


def test_last_line_of_a_run_has_the_number_of_stored_events(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    path = write(tmp_path / "config.toml", settings(lab, state, output=str(output)))
    with command.running("--config", str(path)) as running:
        attempts.attempt(lab.sandbox_namespace, 1001, 20, "sweep")
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    (count,) = re.findall(r"^\d+ records, (\d+) events, ", messages, re.MULTILINE)
    assert int(count) == len(written.distinct(written.events(output))) > 20


def test_run_with_an_inactive_fence_is_not_ready(
    lab: Lab, state: StateDirectory, tmp_path: Path, port: int
) -> None:
    found = settings(lab, state, listen=f"127.0.0.1:{port}", output=str(tmp_path / "events.jsonl"))
    found["sandbox"][0]["self_heal"] = False
    with command.running("--config", str(write(tmp_path / "config.toml", found))) as running:
        assert get(port, "/readyz") == (200, "well\n")
        lab.sandbox_namespace.call(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
        wait_for(lambda: get(port, "/readyz")[0] == 503)
        assert f"the fence of sandbox {conftest.SANDBOX} is not active" in get(port, "/readyz")[1]
        assert samples(get(port, "/metrics")[1])["ocsf_nft_fence_active", ""] == 0
        running.process.kill()


def test_address_in_use_is_an_error_in_one_sentence(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        found = settings(lab, state, listen=taken, output=str(tmp_path / "events.jsonl"))
        done = command.run("run", "--config", str(write(tmp_path / "config.toml", found)))
    assert done.code == 2
    assert f"nothing can listen at {taken}: " in done.stderr.splitlines()[-1]


def test_hangup_reloads_sinks_severities_and_sandboxes(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    path = write(tmp_path / "config.toml", settings(lab, state, output=str(first)))
    with command.running("--config", str(path)) as running:
        attempts.attempt(lab.sandbox_namespace, 1001, 5, "sweep")
        wait_for(lambda: _of_user(first, 1001) == 5)

        def hang_up(found: dict[str, Any], sentence: str) -> None:
            write(path, found)
            running.process.send_signal(signal.SIGHUP)
            running.wait_for_message(sentence)

        sinks = [{"path": str(second)}, {"path": str(first), "classes": ["detection_finding"]}]
        severities = [{"severity": "critical", "uid": 1002}]
        hang_up(settings(lab, state, sink=sinks, severity=severities), " reloaded ")
        attempts.attempt(lab.sandbox_namespace, 1002, 5, "sweep")
        wait_for(lambda: _of_user(second, 1002) == 5)
        assert _of_user(first, 1002) == 0

        elsewhere = settings(lab, state, sink=sinks, severity=severities)
        elsewhere["sandbox"][0]["proxy"] = ["10.9.9.9:1"]
        hang_up(elsewhere, " reloaded ")
        by_user = settings(lab, state, output=str(first), attribution={"method": "user"})
        hang_up(by_user, "attribution cannot be changed by a reload: restart the service")
        hang_up({"sandbox": [{"name": "a/b"}]}, "is no sandbox name")
        missing = str(tmp_path / "no" / "such" / "folder")
        hang_up(settings(lab, state, output=missing), "can't be written")
        path.write_text("[[")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_message("is not TOML")

        attempts.attempt(lab.sandbox_namespace, 1003, 5, "sweep")
        wait_for(lambda: _of_user(second, 1003) == 5)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    of_user = [event for event in written.distinct(written.events(second)) if _user(event) == 1002]
    assert {event["severity"] for event in of_user} >= {"Critical"}
    events = written.distinct(written.events(first))
    findings = [event for event in events if event["class_uid"] == 2004]
    assert {event["severity"] for event in findings} == {"Critical"}
    changes = [each for each in written.events(second) if "policy was changed" in each["message"]]
    assert ["10.9.9.9:1" in each["message"] for each in changes] == [True]


def _user(event: dict[str, Any]) -> int:
    return int(event.get("actor", {}).get("user", {}).get("uid", -1))


def _of_user(path: Path, uid: int) -> int:
    return sum(
        event["count"] for event in written.distinct(written.so_far(path))
        if event["class_uid"] == 4001 and _user(event) == uid
    )  # fmt: skip


@contextmanager
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield the notification socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def test_service_manager_is_notified_of_readiness_and_watchdog(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.toml", settings(lab, state, output=str(tmp_path / "events.jsonl")))
    with manager(tmp_path) as sock:
        under = ["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", "WATCHDOG_USEC=200000"]
        with command.running("--config", str(path), under=under) as running:

            def notification(what: str) -> str:
                while True:
                    message = sock.recv(4096).decode()
                    if what in message:
                        return message

            ready = notification("READY=1\n")
            assert f"STATUS=watching {conftest.SANDBOX}\n" in ready
            assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
            for _ in range(3):
                notification("WATCHDOG=1\n")
            before = time.monotonic_ns() // 1000
            running.process.send_signal(signal.SIGHUP)
            reloading = notification("RELOADING=1\n")
            time_us = re.search(r"MONOTONIC_USEC=(\d+)\n", reloading)
            assert time_us is not None
            assert int(time_us[1]) >= before
            notification("READY=1\n")
            assert running.stop(signal.SIGTERM)[0] == 0
            notification("STOPPING=1\n")


def test_hangup_at_any_time_does_not_end_a_run_with_a_file(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.toml", settings(lab, state, output=str(tmp_path / "events.jsonl")))
    with subprocess.Popen(
        [*command.COMMAND, "run", "--config", path], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            # Hang up only after the file was read: before that, the signal ends the process.
            wait_for((state.path / ".runs.lock").exists)
            while "ready" not in process.stderr.readline():
                process.send_signal(signal.SIGHUP)
            for _ in range(20):
                process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            while process.poll() is None:
                process.send_signal(signal.SIGHUP)
                time.sleep(0.01)
            assert process.returncode == 0, process.stderr.read()
        finally:
            process.kill()


def test_standard_output_begins_with_a_handshake_once_the_fence_is_active(
    lab: Lab, state: StateDirectory
) -> None:
    options = [
        *("run", "--install", "--sandbox", conftest.SANDBOX, "--netns", lab.sandbox),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--state-dir", str(state.path), "--handshake"),
    ]
    for _ in range(2):  # the second time the store has data of the first
        with subprocess.Popen(
            [*command.COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.stdout is not None
                first = orjson.loads(process.stdout.readline())
                assert first["handshake"] == 1
                assert first["pid"] == process.pid
                assert first["sandboxes"] == [
                    {"name": conftest.SANDBOX, "fence": "as installed", "mode": "enforcing"}
                ]
                assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
                attempts.attempt(lab.sandbox_namespace, 1001, 1, "udp4")
                while orjson.loads(process.stdout.readline())["class_uid"] != 4001:
                    pass
            finally:
                process.kill()


def test_each_connection_to_a_socket_begins_with_a_handshake(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    address = str(tmp_path / "socket")
    sink = {"type": "unix", "path": address, "handshake": True, "retry_seconds": 0.1}
    path = write(tmp_path / "c.toml", settings(lab, state, sink=[sink]))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(20)
        with command.running("--config", str(path)) as running:
            for _ in range(2):
                peer, _ = server.accept()
                with peer, peer.makefile("rb") as lines:
                    assert orjson.loads(lines.readline())["handshake"] == 1
                    attempts.attempt(lab.sandbox_namespace, 1001, 1, "udp4")
                    assert orjson.loads(lines.readline())["class_uid"] in {4001, 5019, 6002}
            running.process.kill()


async def test_a_supervisor_enters_a_service_and_iterates_over_its_events(
    lab: Lab, state: StateDirectory
) -> None:
    config = ocsf_nft.parse(settings(lab, state), where="test")
    found: list[dict[str, Any]] = []
    async with ocsf_nft.Service(config, iterates=True) as service:
        assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
        await asyncio.to_thread(attempts.attempt, lab.sandbox_namespace, 1001, 5, "sweep")
        async for event in service:
            found.append(event)
            if sum(_user(each) == 1001 for each in found) == 5:
                service.stop()
    assert found[0]["activity_name"] == "Start"
    assert found[-1]["activity_name"] == "Stop"
    assert verification.verify(conftest.SANDBOX, state).verdict == "absent"


async def test_the_example_in_the_readme_works(lab: Lab, state: StateDirectory) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    for shown, here in (
        ('"netns": "agent"', f'"netns": "{lab.sandbox}"'),
        ('"install": True}]}', f'"install": True}}], "state_dir": "{state.path}"}}'),
        ("...  # the fence", "started()  # the fence"),
        ("        ...\n", "        took(event, service)\n"),
    ):
        assert shown in example
        example = example.replace(shown, here)
    names: dict[str, Any] = {}
    exec(f"async def supervise(started, took):\n{indent(example, '    ')}", names)  # noqa: S102 - our own page
    taken: list[Any] = []

    def took(event: Any, service: ocsf_nft.Service) -> None:
        taken.append(event["activity_name"])
        if "Refuse" in taken:
            service.stop()

    def started() -> None:
        assert verification.verify("agent", state).verdict == "as installed"
        attempts.attempt(lab.sandbox_namespace, 1001, 1, "udp4")

    await names["supervise"](started, took)
    assert taken[0] == "Start"
    assert taken[-1] == "Stop"
    assert verification.verify("agent", state).verdict == "absent"


async def test_events_not_taken_by_a_supervisor_are_delivered_by_the_next_service(
    lab: Lab, state: StateDirectory
) -> None:
    config = ocsf_nft.parse(settings(lab, state), where="test")
    async with ocsf_nft.Service(config, iterates=True) as service:
        async for event in service:
            first = event
            break
    async with ocsf_nft.Service(config, iterates=True) as service:
        async for event in service:
            assert event == first
            break


async def test_supervisor_exception_is_raised_unchanged(lab: Lab, state: StateDirectory) -> None:
    config = ocsf_nft.parse(settings(lab, state), where="test")
    with pytest.raises(KeyError, match="mine"):
        async with ocsf_nft.Service(config, iterates=True):
            raise KeyError("mine")
    assert verification.verify(conftest.SANDBOX, state).verdict == "absent", "it ended as it should"


async def test_service_after_a_cancelled_one_delivers_all_events(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.5)  # no task reads the remaining events
    config = ocsf_nft.parse(settings(lab, state), where="test")

    async def supervise() -> None:
        async with ocsf_nft.Service(config, iterates=True):
            await asyncio.Event().wait()

    for seconds in (0.05, 0.3, 1.5):
        supervising = asyncio.create_task(supervise())
        await asyncio.sleep(seconds)
        supervising.cancel()
        with pytest.raises(asyncio.CancelledError):
            await supervising
    async with ocsf_nft.Service(config, iterates=True) as service:
        await service.reload(config)
        assert (await anext(aiter(service)))["class_uid"] in {5019, 6002}


async def test_service_that_is_cancelled_while_it_loads_programs_closes_them(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ocsf_nft.parse(settings(lab, state), where="test")
    load, loaded, may_return = startup.load_gate, threading.Event(), threading.Event()

    def load_slowly(given: ocsf_nft.Config) -> Gate | None:
        gate = load(given)
        loaded.set()
        may_return.wait(30)
        return gate

    async def supervise() -> None:
        async with ocsf_nft.Service(config, iterates=True):
            await asyncio.Event().wait()

    monkeypatch.setattr(startup, "load_gate", load_slowly)
    supervising = asyncio.create_task(supervise())
    assert await asyncio.to_thread(loaded.wait, 30)
    supervising.cancel()
    await asyncio.sleep(0)
    may_return.set()
    # Each test here fails if it leaves a descriptor, such as that of a BPF program.
    with pytest.raises(asyncio.CancelledError):
        await supervising


async def test_supervisor_gets_the_reason_why_a_fence_can_not_be_active(
    lab: Lab, state: StateDirectory
) -> None:
    found = settings(lab, state)
    found["sandbox"][0]["netns"] = "no-such-namespace"
    config = ocsf_nft.parse(found, where="test")
    with pytest.raises(ocsf_nft.OcsfNftError, match="no-such-namespace"):
        async with ocsf_nft.Service(config, iterates=True):
            pytest.fail("it was entered")


async def test_service_failure_ends_the_code_in_its_context(
    lab: Lab, state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings(lab, state) | {"output": str(tmp_path / "events.jsonl")}
    config = ocsf_nft.parse(found, where="test")

    def fail(_: StateDatabase, __: object) -> NoReturn:
        raise ClosedError("the database is damaged")

    async def watch() -> None:
        async with ocsf_nft.Service(config):
            monkeypatch.setattr(StateDatabase, "commit", fail)
            await asyncio.to_thread(attempts.attempt, lab.sandbox_namespace, 1001, 1, "udp4")
            await asyncio.Event().wait()

    with pytest.raises(ClosedError, match="is damaged"):
        await watch()
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
    installer.remove(conftest.SANDBOX, state)


async def test_service_with_a_sink_can_be_iterated_over(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    config = ocsf_nft.parse(settings(lab, state) | {"output": str(output)}, where="test")
    async with ocsf_nft.Service(config, iterates=True) as service:
        event = await anext(aiter(service))
        assert event["class_uid"] in {5019, 6002}
    assert orjson.loads(output.read_bytes().splitlines()[0]) == event


async def test_service_that_is_not_iterated_over_raises(lab: Lab, state: StateDirectory) -> None:
    service = ocsf_nft.Service(ocsf_nft.parse(settings(lab, state), where="test"))
    with pytest.raises(UsageError, match="iterates=True"):
        await anext(aiter(service))


def test_public_names_can_be_imported() -> None:
    assert {name: getattr(ocsf_nft, name) for name in ocsf_nft.__all__}
    with pytest.raises(AttributeError):
        _ = ocsf_nft.nothing
    assert os.environ.get("NOTIFY_SOCKET") is None
