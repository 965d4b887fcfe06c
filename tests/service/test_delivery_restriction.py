"""Restriction of the delivery process to the files of its sinks, by Landlock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from ocsf_nft import landlock
from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Refusal, Sink
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service import sink_delivery
from ocsf_nft.service.outlet import Outlet
from ocsf_nft.state.change import Change
from tests.delivery.receiver import events, uids
from tests.service.test_delivery_process import delivered, delivering, pid_of, sinks, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="the kernel has no Landlock")


@pytest.fixture(autouse=True)
def long_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an end wait for the sinks on the slowest machine too."""
    monkeypatch.setattr(sink_delivery, "DRAIN_SECONDS", 60.0)


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
