from __future__ import annotations

import asyncio

import pytest

from ocsf_nft.delivery import retry_until_writable
from ocsf_nft.delivery.retry_until_writable import StorageRetrier
from ocsf_nft.errors import DeliveryError


class Disk:
    """Has no room for so many tries."""

    def __init__(self, tries: int) -> None:
        self.tries = tries

    async def write(self) -> str:
        self.tries -= 1
        if self.tries >= 0:
            raise DeliveryError("the disk is full")
        return "written"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_until_writable, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(retry_until_writable, "_SHUTDOWN_GRACE_SECONDS", 0.05)


async def test_it_goes_on_until_the_disk_has_room() -> None:
    retrier = StorageRetrier(asyncio.Event())
    disk = Disk(5)
    waiting = asyncio.create_task(retrier(disk.write))
    while disk.tries > 2:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    assert retrier.fault == "the disk is full"
    assert await waiting == "written"
    assert retrier.fault is None


async def test_once_the_run_is_to_end_it_has_some_seconds_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = asyncio.Event()
    retrier = StorageRetrier(stop)
    waiting = asyncio.create_task(retrier(Disk(1 << 60).write))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    stop.set()
    with pytest.raises(DeliveryError, match="the disk is full"):
        await asyncio.wait_for(waiting, 10)
    assert "the disk takes" not in capsys.readouterr().out, "it never did"
    with pytest.raises(DeliveryError):  # there is no second helping
        await retrier(Disk(1 << 60).write)


async def test_what_is_no_disks_fault_is_not_waited_for() -> None:
    async def mistake() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await StorageRetrier(asyncio.Event())(mistake)


async def test_who_is_cancelled_waits_no_longer() -> None:
    waiting = asyncio.create_task(StorageRetrier(asyncio.Event())(Disk(1 << 60).write))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_patience_reports_a_fault_as_long_as_one_call_waits() -> None:
    async def fit() -> None:  # what needs no room
        pass

    retrier = StorageRetrier(asyncio.Event())
    waiting = [asyncio.create_task(retrier(Disk(1 << 60).write)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for each in waiting:
        await retrier(fit)
        assert retrier.fault == "the disk is full"
        each.cancel()
        await asyncio.wait([each])
    assert retrier.fault is None
