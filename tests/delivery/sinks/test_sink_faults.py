"""Errors of sinks: closed sinks, aborted connections, and files that can't be synced."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ocsf_nft.delivery.object_storage import Bucket
from ocsf_nft.delivery.sinks import http_client, safe_open, syslog
from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.delivery.sinks.syslog import Connection, Datagrams
from ocsf_nft.delivery.sinks.unix import Unix
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.batches import messages
from tests.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Awaitable

_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 2  # include/uapi/linux/fcntl.h


async def test_error_names_a_sink_that_is_not_open(tmp_path: Path) -> None:
    attempts: tuple[tuple[Awaitable[Any], str], ...] = (
        (Connection("host", 6514, None).send([b"x"]), "host port 6514 is not connected"),
        (Datagrams("host", 514).send([b"x"]), "host port 514 is not open"),
        (Unix(path=tmp_path / "s").deliver(messages(b"{}")), f"{tmp_path}/s is not connected"),
        (Bucket(name="lake", region="eu").put("key", b""), "is not open"),
    )
    for attempt, sentence in attempts:
        with pytest.raises(DeliveryError, match=f"{sentence}$"):
            await attempt


async def test_connection_of_a_cancelled_caller_is_closed() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        # Of a backlog of 0 the kernel accepts one connection; it answers no further one.
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        await asyncio.sleep(0)
        before = open_descriptors(collect=True)
        task = asyncio.create_task(syslog.connect("127.0.0.1", port, socket.SOCK_STREAM))
        async with asyncio.timeout(60):
            while open_descriptors() == before:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert open_descriptors() == before


async def test_connection_that_can_not_be_prepared_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_a_client: Any = SimpleNamespace(context=ssl.create_default_context)
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, theirs:
        over_tcp = socket.create_connection(listener.getsockname())
        for opened, tls, cause in (
            (ours, None, "Operation not supported"),  # no TCP_NODELAY
            (over_tcp, of_a_client, "check_hostname requires server_hostname"),
        ):

            async def connect(*_: object, opened: socket.socket = opened) -> socket.socket:
                return opened

            monkeypatch.setattr(syslog, "connect", connect)
            with pytest.raises(DeliveryError, match=f"port 6514 can't be connected to: {cause}"):
                await Connection("", 6514, tls).open()
            assert opened.fileno() == -1


async def test_syslog_connection_is_on_probation_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(type=socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        transports: tuple[Connection | Datagrams, ...] = (
            Connection("127.0.0.1", listener.getsockname()[1], None),
            Datagrams("127.0.0.1", receiver.getsockname()[1]),
        )
        for transport in transports:
            await transport.open()
            monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 0.01)
            await transport.send([b"first"])
            monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 3600.0)
            async with asyncio.timeout(60):
                await transport.send([b"second"])
            transport.close()
            await transport.open()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await transport.send([b"third"])
            transport.close()


async def test_file_whose_torn_line_can_not_be_removed_is_closed() -> None:
    sealed = os.memfd_create("events", os.MFD_ALLOW_SEALING)
    try:
        os.write(sealed, b'{"torn')
        fcntl.fcntl(sealed, _F_ADD_SEALS, _F_SEAL_SHRINK)
        sink = File(path=Path(f"/proc/self/fd/{sealed}"))
        for number in range(3):
            with pytest.raises(DeliveryError, match="can't be written: Operation not permitted"):
                await sink.open()
            await sink.close()
            if number == 0:  # the threads of the event loop are there
                before = open_descriptors(collect=True)
        assert open_descriptors() == before
    finally:
        os.close(sealed)


def test_file_that_another_process_makes_first_is_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    original = safe_open._create

    def create(path: Path) -> int:
        path.write_bytes(b"first\n")
        return original(path)

    monkeypatch.setattr(safe_open, "_create", create)
    descriptor, opened = safe_open.open_to_append(path)
    os.write(descriptor, b"second\n")
    os.close(descriptor)
    assert (opened, path.read_bytes()) == (path, b"first\nsecond\n")


def test_failed_sync_of_a_directory_is_an_error_unless_the_file_system_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors(collect=True)
    safe_open.sync_directory(Path("/proc"))  # fsync(2) fails there with EINVAL
    assert open_descriptors() == before

    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        safe_open.sync_directory(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        safe_open.open_to_append(tmp_path / "events.jsonl")
    assert open_descriptors() == before


def test_web_sink_reports_causes_in_its_own_words() -> None:
    url = "https://token@host/"
    for error, text in (
        (TimeoutError(), "no connection after 10 s"),
        (aiohttp.ConnectionTimeoutError("x"), "no connection after 10 s"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "Connection timed out"),
        (ValueError(url), "ValueError"),
        (aiohttp.ClientError(url), "ClientError"),
        (OSError(f"Cannot write to {url}"), http_client._CLOSED_EARLY),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError(errno.ECONNREFUSED, "Connect call failed"), "Connection refused"),
    ):
        assert http_client._cause(error) == text, error
