from __future__ import annotations

import asyncio

import pytest

from ocsf_nft.errors import DeliveryError
from ocsf_nft.state import retry_until_writable
from ocsf_nft.state.retention import FullError
from ocsf_nft.state.retry_until_writable import StorageRetrier


class Disk:
    """Disk without room for the first ``tries`` writes."""

    def __init__(self, tries: int) -> None:
        self.tries = tries

    def write(self) -> str:
        self.tries -= 1
        if self.tries >= 0:
            raise DeliveryError("the disk is full")
        return "written"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_until_writable, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(retry_until_writable, "_SHUTDOWN_GRACE_SECONDS", 0.05)


async def test_retrier_goes_on_until_the_disk_has_room() -> None:
    retrier = StorageRetrier(asyncio.Event())
    disk = Disk(5)
    waiting = asyncio.create_task(retrier(disk.write))
    while disk.tries > 2:  # noqa: ASYNC110 - no event announces it
        await asyncio.sleep(0)
    assert retrier.fault == "the disk is full"
    assert await waiting == "written"
    assert retrier.fault is None


async def test_retrier_has_a_grace_period_after_a_stop_is_requested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = asyncio.Event()
    retrier = StorageRetrier(stop)
    waiting = asyncio.create_task(retrier(Disk(1 << 60).write))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    stop.set()
    with pytest.raises(DeliveryError, match="the disk is full"):
        await asyncio.wait_for(waiting, 60)
    assert "again" not in capsys.readouterr().out, "it never accepted anything"
    with pytest.raises(DeliveryError):  # the grace period is not renewed
        await retrier(Disk(1 << 60).write)


async def test_full_store_is_not_logged_as_a_fault_of_the_disk(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = iter([FullError("the store holds 1000 bytes that sinks have not received yet")])

    def write() -> None:
        for error in failures:
            raise error

    await StorageRetrier(asyncio.Event())(write)
    begun, ended = capsys.readouterr().out.splitlines()
    assert "the state can't be stored: no records are read meanwhile" in begun
    assert "the store holds 1000 bytes" in begun
    assert "the state can be stored again" in ended
    assert "disk" not in begun + ended


async def test_retrier_passes_other_errors_on() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await StorageRetrier(asyncio.Event())(fail)


async def test_cancelled_caller_waits_no_longer() -> None:
    waiting = asyncio.create_task(StorageRetrier(asyncio.Event())(Disk(1 << 60).write))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_retrier_reports_a_fault_as_long_as_one_caller_waits() -> None:
    def succeed() -> None:  # needs no room
        pass

    retrier = StorageRetrier(asyncio.Event())
    waiting = [asyncio.create_task(retrier(Disk(1 << 60).write)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for each in waiting:
        await retrier(succeed)
        assert retrier.fault == "the disk is full"
        each.cancel()
        await asyncio.wait([each])
    assert retrier.fault is None
