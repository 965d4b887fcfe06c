"""Restriction of the delivery process to the files of its sinks, by Landlock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from ocsf_nft import landlock
from ocsf_nft.control import peer
from ocsf_nft.delivery.name_resolver import ResolverFiles
from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Refusal, Sink
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.service import (
    delivery_files,
    delivery_process,
    delivery_run,
    delivery_start,
    granted_files,
)
from ocsf_nft.service.outlet import Outlet
from ocsf_nft.state.change import Change
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import events, uids
from tests.service.test_delivery_process import (
    delivered,
    delivering,
    log,
    pid_of,
    sinks,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["log"]  # a fixture

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="the kernel has no Landlock")


@pytest.fixture(autouse=True)
def long_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an end wait for the sinks on the slowest machine too."""
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 60.0)


class _Reading(Sink):
    """Sink that tries to read files, as an attacker who controls the process would."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        read = [path.name for path in self._paths if _is_readable(path)]
        return BatchResult(refused=(Refusal(messages[0], f"read {read}"),)) if read else DELIVERED


class _Writing(_Reading):
    """Sink that tries to write files, as an attacker who controls the process would."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def deliver(self, _: Sequence[Message]) -> BatchResult:
        for change in (lambda path: path.write_text("x", "utf-8"), Path.unlink, Path.touch):
            with contextlib.suppress(PermissionError, FileNotFoundError):
                change(self._path)
        return DELIVERED


class _Connecting(_Reading):
    """Sink that connects to a Unix socket from another thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def deliver(self, _: Sequence[Message]) -> BatchResult:
        await asyncio.to_thread(self._connect)
        return DELIVERED

    def _connect(self) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(str(self._path))


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except PermissionError:
        return False
    return True


async def test_process_can_not_read_files_beside_those_of_its_sinks(tmp_path: Path) -> None:
    state, secrets = tmp_path / "state", tmp_path / "secrets"
    for folder in (state, secrets):
        folder.mkdir()
    for name in ("own", "other"):
        (secrets / name).write_text("secret", "utf-8")
    (secrets / "link").symlink_to(secrets / "other")
    own = frozenset({secrets / "own"})
    found = (
        Outlet(name="own", sink=_Reading([secrets / "own"]), reads=own),
        Outlet(name="others", sink=_Reading([secrets / "other", secrets / "link"]), reads=own),
    )
    async with delivering(state, found) as (store, delivery), asyncio.timeout(60):
        await store.commit(Change(events=events(range(1))))
        await until(lambda: all(each.waiting == 0 for each in delivery.sinks))
        refused = {each.name: each.dead for each in delivery.sinks}
    assert refused == {"own": 1, "others": 0}


async def test_sinks_with_other_files_are_replaced_by_another_process(tmp_path: Path) -> None:
    for name in ("state", "a", "b"):
        (tmp_path / name).mkdir()
    paths = [tmp_path / "a/1", tmp_path / "a/2", tmp_path / "b/3"]
    async with (
        delivering(tmp_path / "state", sinks({"path": str(paths[0]), "name": "x"})) as (
            store,
            delivery,
        ),
        asyncio.timeout(60),
    ):
        await store.commit(Change(events=events(range(2))))
        pid = pid_of(delivery)
        await delivery.replace(sinks({"path": str(paths[1]), "name": "x"}))
        assert pid_of(delivery) == pid, "the process may open the directory"
        await store.commit(Change(events=events(range(2, 4))))
        await delivery.replace(sinks({"path": str(paths[2]), "name": "x"}))
        assert pid_of(delivery) != pid
        await store.commit(Change(events=events(range(4, 6))))
        with pytest.raises(DeliveryError, match="missing"):
            await delivery.replace(sinks({"path": str(tmp_path / "missing/deep/x"), "name": "x"}))
        await store.commit(Change(events=events(range(6, 8))))
        await until(lambda: delivered(paths[2])[-1:] == ["uid-7"])
        assert delivery.fault is None
    found = [uid for path in paths for uid in delivered(path)]
    assert found == uids(range(8)), "each event is delivered once"


async def test_process_can_use_the_library_and_the_directory_of_parquet_files(
    tmp_path: Path,
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "state").mkdir()
    lake = tmp_path / "lake"
    table = {"type": "parquet", "directory": str(lake), "region": "eu"}
    async with (
        delivering(tmp_path / "state", sinks(table)) as (store, delivery),
        asyncio.timeout(60),
    ):
        await store.commit(Change(events=events(range(3))))
        # The opened sink has written a file, and looked for the columns of the events.
        await until(lambda: delivery.sinks[0].dead == 3)
    assert lake.is_dir()


async def test_renewed_secret_is_read_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    token = tmp_path / "token"
    token.write_text("first", "utf-8")
    received: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        received.append(request.headers["Authorization"])
        return web.Response()

    application = web.Application()
    application.router.add_post("/", receive)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        table = {
            "type": "http", "url": f"http://127.0.0.1:{runner.addresses[0][1]}/",
            "bearer": {"file": str(token)}, "retry_seconds": 0.01,
        }  # fmt: skip
        async with (
            delivering(tmp_path / "state", sinks(table)) as (store, delivery),
            asyncio.timeout(60),
        ):
            await store.commit(Change(events=events(range(1))))
            await until(lambda: received == ["Bearer first"])
            (tmp_path / "new").write_text("second", "utf-8")
            (tmp_path / "new").rename(token)
            assert await delivery.synchronize()
            await store.commit(Change(events=events(range(1, 2))))
            await until(lambda: received[1:] == ["Bearer second"])
    finally:
        await runner.cleanup()


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("new", "utf-8")
    new.rename(path)


async def test_renewal_after_an_installation_keeps_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    for name in ("state", "a", "b"):
        (tmp_path / name).mkdir()
    output, settings = tmp_path / "a/out", tmp_path / "resolv.conf"
    settings.touch()
    files = ResolverFiles(resolv_conf=settings)
    async with delivering(
        tmp_path / "state", sinks({"path": str(output), "name": "x"}), resolver=files
    ) as (store, delivery):
        pid = pid_of(delivery)
        monkeypatch.setattr(delivery_start, "CODE", "1-1")
        monkeypatch.setattr(delivery_run, "CODE", "1-1")
        _replace(settings)
        for _ in range(3):
            assert await delivery.synchronize()
        with pytest.raises(UsageError, match="restart the service"):
            await delivery.replace(sinks({"path": str(tmp_path / "b/out"), "name": "x"}))
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
        assert pid_of(delivery) == pid
    reasons = [each["reason"] for each in log if "replaced files" in each["event"]]
    assert reasons == [delivery_start.OUTDATED]


async def test_renewal_that_fails_is_retried_while_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    (tmp_path / "state").mkdir()
    output, settings = tmp_path / "out", tmp_path / "resolv.conf"
    settings.touch()
    files = ResolverFiles(resolv_conf=settings)
    program = delivery_run._PROGRAM
    async with delivering(tmp_path / "state", sinks({"path": str(output)}), resolver=files) as (
        store,
        delivery,
    ):
        monkeypatch.setattr(delivery_run, "_PROGRAM", "raise SystemExit(3)")
        _replace(settings)
        await delivery.synchronize()
        await until(lambda: "exit code 3" in str(delivery.fault))
        await store.commit(Change(events=events(range(2))))
        (sink,) = delivery.sinks
        assert (sink.waiting, sink.fault) == (2, delivery.fault)
        monkeypatch.setattr(delivery_run, "_PROGRAM", program)
        await until(lambda: delivered(output) == uids(range(2)))
        await until(lambda: delivery.fault is None)
    assert "the delivery process can't be started" in [each["event"] for each in log]


async def test_renewal_goes_on_without_a_file_that_can_not_be_opened(tmp_path: Path) -> None:
    for name in ("state", "a"):
        (tmp_path / name).mkdir()
    paths, settings = [tmp_path / "a/out", tmp_path / "out"], tmp_path / "resolv.conf"
    settings.touch()
    found = sinks(*({"path": str(path), "retry_seconds": 0.01} for path in paths))
    files = ResolverFiles(resolv_conf=settings)
    async with delivering(tmp_path / "state", found, resolver=files) as (store, delivery):
        pid = pid_of(delivery)
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").touch()  # no directory
        _replace(settings)
        await delivery.synchronize()
        assert pid_of(delivery) != pid
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(paths[1]) == uids(range(2)))
        await until(lambda: delivery.sinks[0].fault is not None)
        (tmp_path / "a").unlink()
        (tmp_path / "b").rename(tmp_path / "a")
        os.kill(pid_of(delivery), signal.SIGKILL)
        await until(lambda: delivered(paths[0]) == uids(range(2)))


async def test_cancelled_renewal_does_not_end_the_delivery(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    output, settings = tmp_path / "out", tmp_path / "resolv.conf"
    settings.touch()
    files = ResolverFiles(resolv_conf=settings)
    async with delivering(tmp_path / "state", sinks({"path": str(output)}), resolver=files) as (
        store,
        delivery,
    ):
        _replace(settings)
        pid = pid_of(delivery)
        renewing = asyncio.create_task(delivery.synchronize())
        await until(lambda: delivery._run is not None and pid_of(delivery) != pid)
        renewing.cancel()
        await asyncio.wait([renewing])
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))


async def test_sink_creates_its_directory_and_writes_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    beside = tmp_path / "beside"
    output, more = tmp_path / "new/out", tmp_path / "more/out"
    writing = Outlet(name="x", sink=_Writing(beside), file=output, writes=output)
    async with delivering(tmp_path / "state", (writing, *sinks({"path": str(output)}))) as (
        store,
        delivery,
    ):
        await store.commit(Change(events=events(range(1))))
        await until(lambda: delivered(output) == uids(range(1)))
        await until(lambda: delivery.sinks[0].waiting == 0)
        assert not beside.exists()
        await delivery.replace((writing, *sinks({"path": str(more)})))
        await store.commit(Change(events=events(range(1, 2))))
        await until(lambda: "uid-1" in delivered(more))
    assert not beside.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs a directory of another user")
async def test_reload_with_a_directory_that_can_not_be_searched_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 1000, 1000)
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from ocsf_nft import privileges
        from ocsf_nft.errors import DeliveryError
        from ocsf_nft.state.change import Change
        from tests.delivery.receiver import events
        from tests.service.test_delivery_process import delivered, delivering, sinks, until

        async def main():
            folder = Path(sys.argv[1])
            private = sinks({"path": str(folder / "private/x/out")})
            found = sinks({"path": str(folder / "a/out")})
            try:
                async with delivering(folder / "state", private):
                    pass
            except DeliveryError as error:
                print(error)
            async with delivering(folder / "state", found) as (store, delivery):
                try:
                    await delivery.replace(private)
                except DeliveryError as error:
                    print(error)
                await store.commit(Change(events=events(range(2))))
                await until(lambda: len(delivered(folder / "a/out")) == 2)

        privileges.keep_only(frozenset())
        asyncio.run(main())
        """
    )
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    errors = [line for line in ended.stdout.splitlines() if line.startswith(str(private))]
    assert errors == [f"{private}/x/out can't be written: Permission denied"] * 2


async def test_secret_whose_path_is_a_loop_holds_back_only_its_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.05)
    (tmp_path / "state").mkdir()
    token, output = tmp_path / "token", tmp_path / "out"
    token.symlink_to(token)
    secret = {"type": "http", "url": "http://127.0.0.1:9/", "bearer": {"file": str(token)}}
    found = sinks(secret, {"path": str(output)})
    async with delivering(tmp_path / "state", found) as (store, delivery):
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
        await until(lambda: "symbolic links" in str(delivery.sinks[0].fault))


async def test_failure_of_the_restriction_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    program = delivery_run._PROGRAM
    first, second = "OSError(5, 'Input/output error')", "RuntimeError('no rules')"
    for error in (first, second):
        failing = (
            "from ocsf_nft import landlock\n"
            f"def fail(_): raise {error}\n"
            "landlock.restrict = fail; from ocsf_nft.service"
        )
        monkeypatch.setattr(
            delivery_run, "_PROGRAM", program.replace("from ocsf_nft.service", failing)
        )
        with contextlib.suppress(DeliveryError):
            async with delivering(tmp_path, ()) as (_, delivery):
                assert await delivery.synchronize()
    found = [(each["event"], each.get("reason", each.get("error"))) for each in log]
    assert ("the delivery process can open all files of its user", "Input/output error") in found
    assert ("the delivery process has failed", "RuntimeError: no rules") in found


async def test_connection_of_the_process_is_known_also_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    address = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        found = (Outlet(name="x", sink=_Connecting(address)),)
        async with delivering(tmp_path / "state", found) as (store, delivery):
            pid = pid_of(delivery)
            await store.commit(Change(events=events(range(1))))
            await until(lambda: delivery.sinks[0].waiting == 0)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: delivery._run is not None and pid_of(delivery) != pid)
            with listener.accept()[0] as accepted:
                assert peer.pid_of(accepted) == pid
            assert delivery.has_run(pid)
            assert delivery.has_run(pid_of(delivery))
            assert not delivery.has_run(os.getpid())
            monkeypatch.setattr(delivery_process, "_RECENT_SECONDS", 0.0)
            assert not delivery.has_run(pid)
            assert delivery.has_run(pid_of(delivery))


@pytest.mark.parametrize("is_recreated", [True, False])
async def test_replaced_directory_is_written_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_recreated: bool
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.5)
    for name in ("state", "a"):
        (tmp_path / name).mkdir()
    output = tmp_path / "a/out"
    found = sinks({"path": str(output), "retry_seconds": 0.01})
    async with delivering(tmp_path / "state", found) as (store, delivery):
        await store.commit(Change(events=events(range(1))))
        await until(lambda: delivered(output) == uids(range(1)))
        (tmp_path / "a").rename(tmp_path / "b")
        if is_recreated:
            (tmp_path / "a").mkdir()
        await store.commit(Change(events=events(range(1, 3))))
        await until(lambda: "Permission denied" in str(delivery.sinks[0].fault))
        await delivery.synchronize()
        await until(lambda: delivered(output) == uids(range(1, 3)))


async def test_reload_after_a_directory_was_replaced_uses_the_new_one(tmp_path: Path) -> None:
    for name in ("state", "a"):
        (tmp_path / name).mkdir()
    async with delivering(tmp_path / "state", sinks({"path": str(tmp_path / "a/1")})) as (
        store,
        delivery,
    ):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        await delivery.replace(sinks({"path": str(tmp_path / "a/2")}))
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(tmp_path / "a/2") == uids(range(2)))


async def test_file_system_that_does_not_answer_blocks_neither_the_service_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    output = tmp_path / "out"
    may_answer = threading.Event()
    async with delivering(tmp_path / "state", sinks({"path": str(output)})) as (store, delivery):
        monkeypatch.setattr(granted_files, "_INSPECTION_SECONDS", 0.05)
        monkeypatch.setattr(delivery_files, "_identity", lambda _: may_answer.wait(30))
        begun = asyncio.get_running_loop().time()
        for _ in range(3):
            assert await delivery.synchronize()
        await store.commit(Change(events=events(range(2))))
        await until(lambda: delivered(output) == uids(range(2)))
        with pytest.raises(DeliveryError, match="does not answer"):
            await delivery._start()
        threads = [each.name for each in threading.enumerate()]
        assert threads.count("delivery-files") == 2
    assert asyncio.get_running_loop().time() - begun < 20
    may_answer.set()


async def test_process_changes_neither_the_state_nor_the_records_of_fences(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    names = ["agent/fence.json", "agent/sandbox.json", "redaction.key", FILE, f"{FILE}-shm"]
    for name in names[:3]:
        (tmp_path / name).write_text("own", "utf-8")
    found = [Outlet(name=name, sink=_Writing(tmp_path / name)) for name in names]
    found.append(Outlet(name="key", sink=_Reading([tmp_path / "redaction.key"])))
    async with delivering(tmp_path, found) as (store, delivery):
        identity = (tmp_path / FILE).stat().st_ino
        await store.commit(Change(events=events(range(1))))
        await until(lambda: all(each.waiting == 0 for each in delivery.sinks))
        assert [each.dead for each in delivery.sinks] == [0] * 6
        assert (tmp_path / FILE).stat().st_ino == identity
        assert store.database.faults() == ()
    assert [(tmp_path / name).read_text("utf-8") for name in names[:3]] == ["own"] * 3


async def test_restored_state_database_is_read_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    output = tmp_path / "out"
    found = sinks({"path": str(output), "retry_seconds": 0.01})
    async with delivering(tmp_path / "state", found) as (store, delivery):
        await store.commit(Change(events=events(range(1))))
        await until(lambda: delivered(output) == uids(range(1)))
        (tmp_path / "state" / FILE).unlink()
        await store.commit(Change(events=events(range(1, 3))))
        await delivery.synchronize()
        await until(lambda: delivered(output) == uids(range(3)))
        assert delivery.fault is None
