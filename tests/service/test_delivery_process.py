"""The process that delivers events to the sinks, with the service's side of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog

from ocsf_nft import config, landlock, redaction
from ocsf_nft.delivery import sink_db
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.redaction import Redactor
from ocsf_nft.service import (
    delivery_child,
    delivery_link,
    delivery_process,
    delivery_run,
    delivery_start,
    name_requests,
)
from ocsf_nft.service.delivery_process import DeliveryProcess
from ocsf_nft.service.outlet import Outlet, outlets
from ocsf_nft.state import dropped_events
from ocsf_nft.state.change import Change
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from ocsf_nft.state.state_store import StateStore
from tests.delivery.receiver import event, events, uids
from tests.name_server import name_server, resolver_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence


@pytest.fixture(autouse=True)
def long_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an end wait for the sinks, and a request for its answer, on the slowest machine too."""
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 60.0)
    monkeypatch.setattr(delivery_run, "_SYNC_SECONDS", 60.0)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the records of the service's log."""
    records: list[dict[str, Any]] = []

    class Logger:
        def msg(self, **record: Any) -> None:
            records.append(record)

        debug = info = warning = error = critical = msg

    made = structlog.wrap_logger(
        Logger(),
        processors=[structlog.processors.add_log_level],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    for module in (delivery_process, delivery_run):
        monkeypatch.setattr(module, "_log", made)
    return records


def sinks(*tables: dict[str, Any]) -> tuple[Outlet, ...]:
    written = {"sandbox": [{"name": "a"}], "sink": [{"batch_seconds": 0} | each for each in tables]}
    return outlets(config.parse(written, where="test").sinks)


@contextlib.asynccontextmanager
async def delivering(
    folder: Path, found: Sequence[Outlet], **more: Any
) -> AsyncIterator[tuple[StateStore, DeliveryProcess]]:
    path = folder / FILE
    async with (
        StateStore(path, StorageRetrier(asyncio.Event())) as store,
        DeliveryProcess(
            found,
            store,
            sinks=sink_db.path_of(path),
            max_bytes=1 << 20,
            max_seconds=60,
            **more,
        ) as delivery,
    ):
        yield store, delivery


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - no event of this process announces it
            await asyncio.sleep(0.005)


def delivered(path: Path) -> list[str]:
    """Return the uids of the events in a file, without those that a kill has repeated."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [orjson.loads(line)["metadata"]["uid"] for line in lines if line.endswith(b"}")]
    return list(dict.fromkeys(found))


def pid_of(delivery: DeliveryProcess) -> int:
    assert delivery._run is not None
    return delivery._run.pid


def _frame(kind: int, body: bytes) -> bytes:
    return struct.pack("!BI", kind, len(body)) + body


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text("utf-8")


async def test_stored_events_are_delivered_by_a_process_without_privileges(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        await store.commit(Change(events=events(range(3))))
        await until(lambda: delivery.sinks[0].delivered == 3)
        assert delivery.sinks[0].waiting == 0
        status = proc(pid_of(delivery), "status")
        sets = re.findall(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\t(\w+)$", status, re.MULTILINE)
        assert len(sets) == 5
        assert all(int(each, 16) == 0 for each in sets)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert "delivery_child" in proc(pid_of(delivery), "cmdline")
    assert delivered(output) == uids(range(3))


async def test_last_events_are_delivered_before_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    found = sinks({"path": str(output), "batch_seconds": 3600})
    async with delivering(tmp_path, found) as (store, delivery):
        await store.commit(Change(events=events(range(500))))
        pid = pid_of(delivery)
    assert delivered(output) == uids(range(500))
    assert not _is_running(pid)


async def test_process_that_is_killed_is_started_again(
    tmp_path: Path, log: list[dict[str, Any]]
) -> None:
    output = tmp_path / "out.jsonl"
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        for number in range(0, 40, 10):
            await store.commit(Change(events=events(range(number, number + 5))))
            await until(partial(_has_delivered, output, number + 5))
            pid = pid_of(delivery)
            os.kill(pid, signal.SIGKILL)
            await store.commit(Change(events=events(range(number + 5, number + 10))))
            await until(lambda: delivery.fault is not None)
            assert "signal 9" in str(delivery.sinks[0].fault)
            await until(lambda: delivery.fault is None)
            await until(partial(_has_delivered, output, number + 10))
    assert delivered(output) == uids(range(40))
    reasons = [each["reason"] for each in log if "started again" in each["event"]]
    assert reasons == ["the delivery process has ended with signal 9"] * 4


async def test_process_that_hangs_keeps_nothing_back_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_link, "_MAX_UNSENT_BYTES", 0)
    output = tmp_path / "out.jsonl"
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        os.kill(pid_of(delivery), signal.SIGSTOP)
        assert delivery._run is not None
        number = 0
        while not delivery._run._link.is_behind or number % 5:
            await store.commit(Change(events=[event(number)]))
            number += 1
        os.kill(pid_of(delivery), signal.SIGCONT)
        # It has not been sent the number of the last event, but the next request has it.
        assert await delivery.synchronize()
        await until(lambda: len(delivered(output)) == number)
    assert delivered(output) == uids(range(number))


async def test_process_that_does_not_answer_for_a_minute_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(delivery_run, "_SYNC_SECONDS", 0.01)
    output = tmp_path / "out.jsonl"
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        pid = pid_of(delivery)
        os.kill(pid, signal.SIGSTOP)
        assert not await delivery.synchronize()
        assert pid_of(delivery) == pid
        monkeypatch.setattr(delivery_run, "_HUNG_SECONDS", 0.0)
        assert not await delivery.synchronize()
        monkeypatch.setattr(delivery_run, "_HUNG_SECONDS", 600.0)
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
    assert "it does not answer" in [each.get("reason") for each in log]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_for_the_service_does_not_end_the_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out.jsonl"
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        pid = pid_of(delivery)
        os.kill(pid, number)
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
        assert pid_of(delivery) == pid


async def test_process_ends_with_a_service_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from pathlib import Path
        from tests.service.test_delivery_process import delivering, pid_of, sinks

        async def main():
            found = sinks({"path": sys.argv[1] + "/out.jsonl"})
            async with delivering(Path(sys.argv[1]), found) as (store, delivery):
                print(pid_of(delivery), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    await until(lambda: not _is_running(pid))
    async with delivering(tmp_path, sinks({"path": str(tmp_path / "out.jsonl")})):
        pass  # nothing holds the database of the checkpoints


def _has_delivered(output: Path, number: int) -> bool:
    return len(delivered(output)) == number


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_sink_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    found = sinks({"path": str(tmp_path / "missing" / "deep" / "out.jsonl")})
    with pytest.raises(DeliveryError, match=r"missing/deep"):
        await delivering(tmp_path, found).__aenter__()
    async with delivering(tmp_path, sinks({"path": str(tmp_path / "out.jsonl")})):
        pass


async def test_standard_output_without_a_reader_ends_the_service(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, structlog, sys
        from pathlib import Path
        from ocsf_nft.errors import ClosedError
        from tests.delivery.receiver import events
        from ocsf_nft.state.change import Change
        from tests.service.test_delivery_process import delivering, sinks

        async def main():
            async with delivering(Path(sys.argv[1]), sinks({"type": "stdout"})) as (store, _):
                await store.commit(Change(events=events(range(1))))
                while True:
                    await asyncio.sleep(0.05)
                    end = store.database.end
                    await store.commit(Change(events=events(range(end, end + 1))))

        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        try:
            asyncio.run(main())
        except* ClosedError:
            print("nobody reads", file=sys.stderr)
        """
    )
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert service.stdout is not None
    assert service.stderr is not None
    assert b"uid-0" in await service.stdout.readline()
    service.stdout._transport.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        assert b"nobody reads" in await service.stderr.read()
        await service.wait()


async def test_sinks_are_replaced_by_a_reload(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    before = sinks({"path": str(paths[0])}, {"path": str(paths[1]), "name": "kept"})
    async with delivering(tmp_path, before) as (store, delivery):
        await store.commit(Change(events=events(range(2))))
        await until(lambda: all(each.delivered == 2 for each in delivery.sinks))
        await delivery.replace(sinks({"path": str(paths[2]), "name": "kept"}))
        await store.commit(Change(events=events(range(2, 4))))
        await until(lambda: delivered(paths[2]) == uids(range(2, 4)))
        with pytest.raises(DeliveryError, match="missing"):
            await delivery.replace(sinks({"path": str(tmp_path / "missing" / "deep" / "x")}))
        await store.commit(Change(events=events(range(4, 6))))
        await until(lambda: delivered(paths[2]) == uids(range(2, 6)))
        os.kill(pid_of(delivery), signal.SIGKILL)
        await store.commit(Change(events=events(range(6, 8))))
        await until(lambda: delivered(paths[2]) == uids(range(2, 8)))
    assert [delivered(path) for path in paths[:2]] == [uids(range(2))] * 2


async def test_handshake_comes_first_also_after_a_restart(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    found = sinks({"type": "unix", "path": str(address), "handshake": True, "retry_seconds": 0.01})
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            lines.put_nowait(line)
        writer.close()

    async with (
        await asyncio.start_unix_server(read, str(address)),
        delivering(tmp_path, found) as (store, delivery),
        asyncio.timeout(60),
    ):
        await store.commit(Change(events=events(range(1))))
        delivery.set_handshake(b'{"handshake":1}')
        assert b"handshake" in await lines.get()
        assert b"uid-0" in await lines.get()
        delivery.set_handshake(b'{"handshake":2}')  # a sandbox was added
        await store.commit(Change(events=events(range(1, 3))))
        found_lines = [await lines.get() for _ in range(2)]
        assert [orjson.loads(each)["metadata"]["uid"] for each in found_lines] == uids(range(1, 3))
        await until(lambda: delivery.sinks[0].delivered == 3)
        os.kill(pid_of(delivery), signal.SIGKILL)
        assert b'"handshake":2' in await lines.get()
    assert lines.empty()


@pytest.mark.parametrize(
    ("sent", "is_killed"),
    [
        (b"", False),
        (_frame(23, b'{"kind":"ClosedError","reason":"no reader"}'), False),
        (b"\xff" * 64, True),
        (b"\x15\xff\xff\xff\xff", True),
        (_frame(21, b"[]"), True),
        (_frame(21, b"{"), True),
        (_frame(21, b"[" * 200_000), True),
        (_frame(21, b"0" * 6000), True),
        (_frame(20, b"[1, null]"), True),
        (_frame(22, b'{"level":[]}'), True),
        (_frame(22, b'{"level":"bind"}'), True),
        (_frame(22, b'{"level":"info","event":"x"}') * 20_000, True),
        (_frame(1, b""), True),
    ],
    ids=[
        "end", "closed", "no kind", "too large", "list", "no JSON", "deep", "large number",
        "answer", "level", "method", "flood", "start",
    ],
)  # fmt: skip
async def test_invalid_frame_ends_only_the_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[dict[str, Any]],
    sent: bytes,
    is_killed: bool,
) -> None:
    output, frames = tmp_path / "out.jsonl", tmp_path / "frames"
    frames.write_bytes(_frame(20, b"[0, null]") + sent)
    program = delivery_run._PROGRAM
    monkeypatch.setattr(delivery_run, "_MAX_FRAMES", 1000)  # in a second, also on a slow machine
    async with delivering(tmp_path, sinks({"path": str(output)})) as (store, delivery):
        forged = (
            "import socket, sys; found = socket.socket(fileno=int(sys.argv[2])); "
            f"found.sendall(open({str(frames)!r}, 'rb').read())"
        )
        if is_killed:
            forged += "; import time; time.sleep(600)"
        monkeypatch.setattr(delivery_run, "_PROGRAM", forged)
        os.kill(pid_of(delivery), signal.SIGKILL)
        await until(lambda: len([each for each in log if "started again" in each["event"]]) > 1)
        monkeypatch.setattr(delivery_run, "_PROGRAM", program)
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
    killed = [each for each in log if each["event"] == "the delivery process is killed"]
    assert bool(killed) == is_killed


async def test_process_is_started_again_although_a_file_can_not_be_opened(
    tmp_path: Path, log: list[dict[str, Any]]
) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    found = sinks({"path": str(paths[0]), "retry_seconds": 0.01}, {"path": str(paths[1])})
    async with delivering(tmp_path, found) as (store, delivery):
        paths[0].unlink()
        paths[0].mkdir()
        os.kill(pid_of(delivery), signal.SIGKILL)
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(paths[1]) == uids(range(2)))
        paths[0].rmdir()
        await until(lambda: delivered(paths[0]) == uids(range(2)))
    assert [each["reason"] for each in log if "started again" in each["event"]] == [
        "the delivery process has ended with signal 9"
    ]


async def test_sinks_can_be_replaced_while_no_process_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    program = delivery_run._PROGRAM
    async with delivering(tmp_path, sinks({"path": str(paths[0])})) as (store, delivery):
        monkeypatch.setattr(delivery_run, "_PROGRAM", "raise SystemExit(3)")
        os.kill(pid_of(delivery), signal.SIGKILL)
        await until(lambda: "exit code 3" in str(delivery.fault))
        while delivery._run is not None:  # noqa: ASYNC110 - one is started, and ends
            await asyncio.sleep(0.001)
        await delivery.replace(sinks({"path": str(paths[1])}))
        monkeypatch.setattr(delivery_run, "_PROGRAM", program)
        await until(lambda: delivery.fault is None)
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(paths[1]) == uids(range(2)))
    assert delivered(paths[0]) == []


async def test_process_of_another_version_asks_for_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_run, "CODE", "1-1")
    with pytest.raises(UsageError, match="restart the service"):
        await delivering(tmp_path, ()).__aenter__()


async def test_log_of_the_process_is_in_the_service_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.05)
    found = sinks({"type": "unix", "path": str(tmp_path / "nobody"), "retry_seconds": 0.01})
    async with delivering(tmp_path, found) as (store, _):
        await store.commit(Change(events=events(range(1))))
        await until(lambda: any("sink down" in each["event"] for each in log))
    (down,) = [each for each in log if "sink down" in each["event"]]
    assert (down["level"], down["sink"]) == ("error", f"unix:{tmp_path / 'nobody'}")


async def test_answers_of_receivers_have_no_configured_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1 << 16):
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 13\r\n\r\ntry corp-4711")
        writer.close()

    redactor = Redactor(bytes(32), [re.compile("corp-[0-9]+")])
    monkeypatch.setattr(redaction, "_current", redactor)
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.05)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        table = {"type": "http", "url": f"http://127.0.0.1:{port}/", "retry_seconds": 0.01}
        async with delivering(tmp_path, sinks(table)) as (store, _):
            await store.commit(Change(events=events(range(1))))
            await until(lambda: any("sink down" in each["event"] for each in log))
    (reason,) = [each["reason"] for each in log if "sink down" in each["event"]]
    assert "try [redacted:" in reason
    assert redactor.text("corp-4711") not in reason  # the process does not know the key


async def test_dead_letters_and_faults_of_the_database_are_reported(tmp_path: Path) -> None:
    path = sink_db.path_of(tmp_path / FILE)
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    async with delivering(tmp_path, ()) as (_, delivery):
        (report,) = await delivery.faults()
        assert f"{path} was damaged" in report
        await delivery.confirm_fault(report)
        assert await delivery.faults() == ()
        assert await delivery.dropped_events() == ()
    async with delivering(tmp_path, ()) as (_, delivery):
        assert await delivery.faults() == ()


async def test_report_that_is_confirmed_just_before_the_end_is_not_repeated(tmp_path: Path) -> None:
    path = sink_db.path_of(tmp_path / FILE)
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    async with delivering(tmp_path, ()) as (_, delivery):
        (report,) = await delivery.faults()
        await delivery.confirm_fault(report)
    async with delivering(tmp_path, ()) as (_, delivery):
        assert await delivery.faults() == ()


def test_lookups_without_an_answer_delay_no_other_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, ended = socket.getaddrinfo, threading.Event()

    def without_answer(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "localhost":
            ended.wait(120)
        return look_up(host, *arguments, **options)

    async def deliver() -> None:
        receiver = await asyncio.start_server(lambda _, writer: writer.close(), "localhost", 0)
        port = receiver.sockets[0].getsockname()[1]
        connections = [
            asyncio.create_task(asyncio.open_connection("receiver.invalid", 514))
            for _ in range(100)
        ]
        await asyncio.sleep(0)
        async with receiver, asyncio.timeout(60):
            _, writer = await asyncio.open_connection("localhost", port)
            writer.close()
            assert await asyncio.to_thread(len, "abc") == 3
        for each in connections:
            each.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    monkeypatch.setattr(socket, "getaddrinfo", without_answer)
    try:
        with asyncio.Runner(loop_factory=delivery_child.ChildLoop) as runner:
            runner.run(deliver())
    finally:
        ended.set()


@pytest.mark.skipif(landlock.abi() == 0, reason="the kernel has no Landlock")
async def test_report_is_confirmed_once_although_another_process_takes_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first")
    headers = {"X-Token": {"file": str(secret)}}
    found = sinks({"type": "http", "url": "http://127.0.0.1:9/", "headers": headers})
    dropped = DroppedEvents("former", 5)
    async with delivering(tmp_path, found) as (_, delivery):
        _drop_dead_letters(tmp_path, dropped)
        assert await delivery.dropped_events() == (dropped,)
        await delivery.confirm_reported([dropped])
        before = pid_of(delivery)
        (tmp_path / "renewed").write_text("second")
        (tmp_path / "renewed").replace(secret)
        assert await delivery.dropped_events() == ()
        assert pid_of(delivery) != before
        _drop_dead_letters(tmp_path, dropped)
        assert await delivery.dropped_events() == (dropped,)


def _drop_dead_letters(folder: Path, dropped: DroppedEvents) -> None:
    path = sink_db.path_of(folder / FILE)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        dropped_events.add(connection, dropped)


async def test_process_that_does_not_answer_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_run, "_SYNC_SECONDS", 0.01)
    async with delivering(tmp_path, sinks({"path": str(tmp_path / "out")})) as (_, delivery):
        pid = pid_of(delivery)
        os.kill(pid, signal.SIGSTOP)
        assert not await delivery.synchronize()
        await until(lambda: delivery._run is not None and delivery._run.is_late)
        before = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - before < 30  # of 60 for the sinks
    assert not _is_running(pid)


def test_process_imports_neither_models_nor_what_only_people_see() -> None:
    unneeded = ("pydantic", "ocsf_nft.ocsf", "rich", "pygments")
    program = delivery_run._PROGRAM.replace(
        "main(*sys.argv[2:])", f"print([each for each in {unneeded} if sys.modules.get(each)])"
    )
    command = [sys.executable, "-c", program, orjson.dumps(sys.path).decode()]
    assert subprocess.check_output(command, text=True) == "[]\n"


async def test_host_names_are_resolved_by_the_process(tmp_path: Path) -> None:
    async with name_server({"a.test": ["192.0.2.1", "127.0.0.1", "2001:db8::1"]}) as server:
        files = resolver_files(tmp_path, server)
        async with delivering(tmp_path, (), resolver=files) as (_, delivery):
            found = await delivery.names.resolve("a.test")
            assert [str(each.addresses[0]) for each in found.families.values()] == [
                "192.0.2.1", "2001:db8::1"
            ]  # fmt: skip
            assert found.families[4].refused == ("127.0.0.1 (it is a loopback address)",)
            server.mode = "garbage"
            found = await delivery.names.resolve("a.test")
            assert all(each.error is not None for each in found.families.values())
            server.mode = "answer"
            assert (await delivery.names.resolve("b.test")).families[4].is_absent


async def test_lookup_is_repeated_by_the_next_process(tmp_path: Path) -> None:
    async with name_server({"a.test": ["192.0.2.1"]}) as server:
        server.mode = "silent"
        files = resolver_files(tmp_path, server)
        async with delivering(tmp_path, (), resolver=files) as (_, delivery):
            asking = asyncio.create_task(delivery.names.resolve("a.test"))
            await until(lambda: server.asked["a.test", "A"])
            server.mode = "answer"
            os.kill(pid_of(delivery), signal.SIGKILL)
            found = await asking
            assert list(map(str, found.families[4].addresses)) == ["192.0.2.1"]


async def test_name_is_asked_once_at_a_time_and_a_lookup_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with name_server() as server:
        server.mode = "silent"
        files = resolver_files(tmp_path, server)
        async with delivering(tmp_path, (), resolver=files) as (_, delivery):
            monkeypatch.setattr(name_requests, "_SECONDS", 0.01)
            await delivery.names.resolve("a.test")
            await until(lambda: server.asked["a.test", "A"])
            for _ in range(20):
                await delivery.names.resolve("a.test")
            assert await delivery.synchronize()
            assert max(server.asked.values()) <= 2
            ending = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ending < 3
