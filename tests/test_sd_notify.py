from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import sd_notify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def test_each_state_is_one_line_with_any_value(manager: socket.socket) -> None:
    sd_notify.notify(READY="1", STATUS="watching a\nSTOPPING=1")
    assert manager.recv(4096) == b"READY=1\nSTATUS=watching a STOPPING=1\n"


def test_an_abstract_socket_begins_with_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"ocsf-nft-test-{os.getpid()}"
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        sd_notify.notify(READY="1")
        assert sock.recv(4096) == b"READY=1\n"


@pytest.mark.parametrize("path", ["", "/no/such/socket"])
def test_without_a_manager_that_listens_nothing_happens(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    sd_notify.notify(READY="1")


def test_notify_does_not_wait_for_a_manager_that_reads_nothing(manager: socket.socket) -> None:
    def notify_until_blocked() -> None:
        for _ in range(2000):
            sd_notify.notify(STATUS="x" * 1000)

    thread = threading.Thread(target=notify_until_blocked, daemon=True)
    thread.start()
    thread.join(30)
    is_waiting = thread.is_alive()
    while thread.is_alive():  # it ends once the manager reads
        manager.recv(4096)
    assert not is_waiting


async def test_watchdog_is_notified_only_while_the_service_is_healthy(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    asked = 0

    def is_well() -> bool:
        nonlocal asked
        asked += 1
        return asked != 2

    keeping = asyncio.create_task(sd_notify.keep_alive(is_well))
    while asked < 4:  # noqa: ASYNC110 - no event to wait for
        await asyncio.sleep(0.005)
    keeping.cancel()
    manager.setblocking(False)
    received = 0
    while True:
        try:
            assert manager.recv(64) == b"WATCHDOG=1\n"
        except BlockingIOError:
            break
        received += 1
    assert received == asked - 1


@pytest.mark.parametrize(
    ("microseconds", "pid"), [("", None), ("0", None), ("x", None), ("20000", "1")]
)
async def test_without_a_watchdog_for_this_process_nothing_is_sent(
    microseconds: str, pid: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    await asyncio.wait_for(sd_notify.keep_alive(lambda: True), 5)


def test_reload_gives_the_monotonic_clock_in_microseconds(manager: socket.socket) -> None:
    before_ns = time.monotonic_ns()
    sd_notify.notify_reloading()
    after_ns = time.monotonic_ns()
    first, second, rest = manager.recv(256).decode().split("\n")
    assert (first, rest) == ("RELOADING=1", "")
    name, _, microseconds = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_ns // 1000 <= int(microseconds) <= after_ns // 1000


@pytest.mark.usefixtures("manager")
async def test_watchdog_is_notified_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sd_notify.keep_alive(lambda: True)
    assert pauses == [15.0]
