from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.delivery.sinks.base import DELIVERED, Message
from ocsf_nft.delivery.sinks.unix import Unix
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.batches import messages
from tests.delivery.sinks.hostile import hostile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Listener:
    """Listener at a path that reads on request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(5)
        self._connection: socket.socket | None = None

    def accept(self) -> None:
        self._connection, _ = self._listening.accept()
        self._connection.settimeout(60)

    def read(self, size: int) -> bytes:
        assert self._connection is not None
        found = b""
        while len(found) < size and (more := self._connection.recv(size - len(found))):
            found += more
        return found

    def send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        self.disconnect()
        self._listening.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "socket")
    yield listener
    listener.close()


def lines(sent: list[Message]) -> bytes:
    return b"".join(each.line + b"\n" for each in sent)


async def test_listener_has_each_event_on_a_line(listener: Listener) -> None:
    sent = [*hostile(), *attempts(500)]
    async with Unix(path=listener.path) as sink:
        listener.accept()
        reading = asyncio.create_task(asyncio.to_thread(listener.read, len(lines(sent))))
        assert await sink.deliver(sent[:7]) == DELIVERED
        assert await sink.deliver(sent[7:]) == DELIVERED
        assert await reading == lines(sent)


@pytest.mark.parametrize("fault", ["No such file or directory", "Connection refused"])
async def test_error_for_a_missing_listener_is_one_sentence(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "socket"
    if fault == "Connection refused":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(str(path))
    with pytest.raises(
        DeliveryError,
        match=f"^{path} can't be connected to: {fault}: start the program that listens there$",
    ):
        await Unix(path=path).open()


async def test_error_for_a_listener_with_a_full_backlog_is_immediate(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        with pytest.raises(DeliveryError, match="Resource temporarily unavailable"):
            await Unix(path=path).open()


async def test_an_event_is_delivered_when_it_has_been_read(listener: Listener) -> None:
    async with Unix(path=listener.path) as sink:
        listener.accept()
        delivery = asyncio.create_task(sink.deliver(messages(b"A", b"B")))
        await asyncio.sleep(0.1)
        assert listener.read(2) == b"A\n"
        await asyncio.sleep(0.1)
        assert not delivery.done()
        assert listener.read(2) == b"B\n"
        assert await asyncio.wait_for(delivery, 60) == DELIVERED


async def test_delivery_does_not_wait_for_the_reader_if_disabled(listener: Listener) -> None:
    async with Unix(path=listener.path, until_read=False) as sink:
        assert await asyncio.wait_for(sink.deliver(messages(b"A")), 60) == DELIVERED
    listener.accept()
    assert listener.read(100) == b"A\n"


@pytest.mark.parametrize("has_read", [0, 3])
async def test_events_unread_at_the_death_of_the_listener_are_not_delivered(
    listener: Listener, has_read: int
) -> None:
    batch = messages(b"A", b"B", b"C")
    sink = Unix(path=listener.path)
    async with sink:
        listener.accept()
        delivery = asyncio.create_task(sink.deliver(batch))
        await asyncio.sleep(0.05)
        listener.read(has_read)
        listener.disconnect()
        with pytest.raises(DeliveryError, match="broke: Connection reset by peer"):
            await asyncio.wait_for(delivery, 60)
    async with sink:
        listener.accept()
        reading = asyncio.create_task(asyncio.to_thread(listener.read, len(lines(batch))))
        assert await sink.deliver(batch) == DELIVERED
        assert await reading == lines(batch)


async def test_listener_that_restarts_between_two_batches_gets_the_next_one(
    listener: Listener,
) -> None:
    sink = Unix(path=listener.path, until_read=False)
    async with sink:
        listener.accept()
        await sink.deliver(messages(b"A"))
        assert listener.read(2) == b"A\n"
        listener.disconnect()
        with pytest.raises(DeliveryError, match="broke: it closed the connection"):
            await sink.deliver(messages(b"B"))
    async with sink:
        listener.accept()
        await sink.deliver(messages(b"B"))
        assert listener.read(2) == b"B\n"


async def test_listener_that_sends_data_before_it_closes_is_noticed(listener: Listener) -> None:
    async with Unix(path=listener.path, until_read=False) as sink:
        listener.accept()
        listener.send(b"bye\n")
        listener.disconnect()
        with pytest.raises(DeliveryError, match="broke"):
            await sink.deliver(messages(b"A"))


async def test_a_listener_that_dies_while_its_buffer_is_full_is_noticed(listener: Listener) -> None:
    async with Unix(path=listener.path) as sink:
        listener.accept()
        delivery = asyncio.create_task(sink.deliver(attempts(2000)))
        await asyncio.sleep(0.2)
        assert not delivery.done()
        listener.disconnect()
        with pytest.raises(DeliveryError, match="broke"):
            await asyncio.wait_for(delivery, 60)


@pytest.mark.parametrize("number", [1, 2000])
async def test_delivery_to_a_slow_listener_can_be_cancelled(
    listener: Listener, number: int
) -> None:
    async with Unix(path=listener.path) as sink:
        listener.accept()
        delivery = asyncio.create_task(sink.deliver(attempts(number)))
        await asyncio.sleep(0.1)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(delivery, 60)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_data_of_a_listener_are_ignored(listener: Listener) -> None:
    async with Unix(path=listener.path, until_read=False) as sink:
        listener.accept()
        for _ in range(3):
            listener.send(b"who are you?\n" * 1000)
            assert await sink.deliver(messages(b"A")) == DELIVERED
        assert listener.read(6) == b"A\n" * 3


#: Moves bytes slowly to standard output. splice(2) moves a byte in one step, so each byte that was
#: read is also written.
_READER: Final = """
import os, socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("ready", flush=True)
with listening.accept()[0] as connection:
    while os.splice(connection.fileno(), 1, 1):
        pass
"""


async def test_program_that_is_killed_repeatedly_misses_no_event(tmp_path: Path) -> None:
    path, sent = tmp_path / "socket", messages(*(b"%d" % number for number in range(60)))
    sink = Unix(path=path)
    found: list[bytes] = []
    batches = [sent[at : at + 3] for at in range(0, len(sent), 3)]
    async with asyncio.timeout(600):
        for round_number, batch in enumerate(batches):
            is_delivered = False
            seconds = 0.0002 * round_number
            while not is_delivered:
                with _reader(path) as reader:
                    is_delivered = await _delivered(sink, batch, reader, seconds)
                    reader.kill()
                    out, _ = reader.communicate()
                    found += out.split(b"\n")
                path.unlink()
                # On a busy machine, a reader may need long for its first byte.
                seconds += max(seconds, 0.0005)
    assert {each.line for each in sent} <= set(found)


async def _delivered(
    sink: Unix, batch: list[Message], reader: subprocess.Popen[bytes], seconds: float
) -> bool:
    try:
        async with sink:
            delivery = asyncio.create_task(sink.deliver(batch))
            await asyncio.sleep(seconds)
            reader.send_signal(signal.SIGKILL)
            await delivery
    except DeliveryError:
        return False
    return True


def _reader(path: Path) -> subprocess.Popen[bytes]:
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _READER, path], stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    assert os.read(reader.stdout.fileno(), 6) == b"ready\n"
    return reader
