"""Syslog sink against rsyslog, and against receivers with rare behaviour."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson
import pytest

from ocsf_nft.delivery.rfc5424 import frame
from ocsf_nft.delivery.sinks import syslog
from ocsf_nft.delivery.sinks.base import DELIVERED, Message
from ocsf_nft.delivery.sinks.syslog import MAX_BYTES, Syslog
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.daemons import Rsyslog, stopped_at_exit
from tests.delivery.sinks.hostile import hostile
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

Connected: TypeAlias = "Literal['tcp', 'udp']"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Rsyslog]:
    with stopped_at_exit(Rsyslog(folder=tmp_path)) as daemon:
        yield daemon


def sink_to(daemon: Rsyslog, transport: Connected = "tcp") -> Syslog:
    return sink_at(daemon.port, transport)


def sink_at(port: int, transport: Connected = "tcp") -> Syslog:
    return Syslog(transport=transport, host="127.0.0.1", port=port)


def events(messages: Iterable[Message]) -> list[Any]:
    return [each.event() for each in messages]


def read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


async def wait_until_blocked(sink: Syslog) -> None:
    """Wait until a part of a batch is outstanding and no more of it is sent."""
    assert isinstance(sink._transport, syslog.Connection)
    stream = sink._transport._stream
    assert stream is not None
    before, now = -1, 0
    async with asyncio.timeout(60):
        while now == 0 or now != before:
            await asyncio.sleep(0.1)
            before, now = now, stream._outstanding_bytes()


def event_of_size(size: int) -> Message:
    """Return an event whose syslog message has ``size`` bytes."""
    event = {"class_uid": 4001, "type_uid": 400105, "time": 0, "message": ""}
    event["message"] = "x" * (size - len(frame(orjson.dumps(event))))
    return Message("uid", orjson.dumps(event))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_receiver_has_each_event_unchanged(daemon: Rsyslog, transport: Connected) -> None:
    sent = [*hostile(), *attempts(200)]
    await daemon.start()
    async with sink_to(daemon, transport) as sink:
        assert await sink.deliver(sent) == DELIVERED
        assert await sink.deliver(sent[:1]) == DELIVERED
    await daemon.wait_for(len(sent) + 1)
    assert daemon.events == events([*sent, sent[0]])
    assert {head for head, _ in daemon.stored} == {
        f"host-1 ocsf-nft {each.event()['type_uid']} {128 + 4}" for each in sent
    }


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_event_that_the_receiver_would_truncate_is_refused_and_the_others_arrive(
    daemon: Rsyslog, transport: Connected
) -> None:
    longest, longer = event_of_size(MAX_BYTES), event_of_size(MAX_BYTES + 1)
    await daemon.start()
    async with sink_to(daemon, transport) as sink:
        outcome = await sink.deliver([longest, longer, longest])
        (refusal,) = outcome.refused
        assert refusal.message is longer
        assert "8097 bytes is longer than max_bytes, which is 8096" in refusal.reason
        assert (await sink.deliver([longer])).refused == (refusal,)
    await daemon.wait_for(2)
    assert daemon.texts == [longest.line] * 2


async def test_a_datagram_that_can_not_be_sent_at_all_is_refused(daemon: Rsyslog) -> None:
    await daemon.start()
    sink = Syslog(transport="udp", host="127.0.0.1", port=daemon.port, max_bytes=1 << 20)
    async with sink:
        with pytest.raises(RefusedError, match="Message too long"):
            await sink.deliver([event_of_size(65_508)])
        assert await sink.deliver([event_of_size(65_507)]) == DELIVERED


async def test_error_for_a_receiver_that_is_down_is_one_sentence() -> None:
    port = free_port()
    with pytest.raises(
        DeliveryError,
        match=f"^the syslog receiver 127.0.0.1 port {port} can't be connected to: "
        "Connection refused$",
    ):
        await sink_at(port).open()


async def test_error_for_an_unknown_host_name_is_one_sentence() -> None:
    for transport in ("tcp", "udp"):
        with pytest.raises(DeliveryError, match=r"no-such-host.invalid port 514 .*[Nn]ame"):
            await Syslog(transport=transport, host="no-such-host.invalid", port=514).open()


async def test_closed_udp_port_is_reported_at_the_first_delivery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 60)  # the error ends it
    sink = sink_at(free_port(), "udp")
    for batch in (attempts(1), attempts(3)):
        async with sink:
            with pytest.raises(DeliveryError, match="can't be sent to: Connection refused"):
                await sink.deliver(batch)


async def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    async def found(*_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    async with (
        receiving(_read_all, port=port),
        Syslog(transport="tcp", host="localhost", port=port) as sink,
    ):
        assert await sink.deliver(attempts(1)) == DELIVERED


async def test_receiver_that_died_is_noticed_before_an_event_is_dropped(daemon: Rsyslog) -> None:
    sent = attempts(30)
    await daemon.start()
    sink = sink_to(daemon)
    async with sink:
        await sink.deliver(sent[:10])
        await daemon.wait_for(10)
        daemon.stop()
        with pytest.raises(DeliveryError, match="broke"):
            await sink.deliver(sent[10:20])
    with pytest.raises(DeliveryError, match="Connection refused"):
        await sink.open()
    await daemon.start()
    async with sink:
        await sink.deliver(sent[10:])
    await daemon.wait_for(30)
    assert daemon.events == events(sent)


async def test_receiver_that_dies_during_a_batch_gets_it_after_its_restart(
    daemon: Rsyslog,
) -> None:
    many = attempts(500) * 20
    await daemon.start()
    sink = sink_to(daemon)
    async with sink:
        daemon.freeze()
        delivery = asyncio.create_task(sink.deliver(many))
        await wait_until_blocked(sink)
        daemon.stop()
        with pytest.raises(DeliveryError, match=r"broke: (Connection reset|Broken pipe)"):
            await delivery
    await daemon.start()
    async with sink:
        await sink.deliver(many[:500])
    await daemon.wait_for(500)
    assert daemon.events == events(many[:500])


async def test_delivery_to_a_slow_receiver_can_be_cancelled(daemon: Rsyslog) -> None:
    many = attempts(500) * 20
    await daemon.start()
    sink = sink_to(daemon)
    async with sink:
        daemon.freeze()
        delivery = asyncio.create_task(sink.deliver(many))
        await wait_until_blocked(sink)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(delivery, 60)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@asynccontextmanager
async def receiving(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0
) -> AsyncIterator[int]:
    """Run a TCP receiver that calls ``behave`` for each connection; yield its port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _read_all(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _close_soon(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.1)


async def _send_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 who are you?\r\n" * 100_000)
    await reader.read()


async def _read_once(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(10)


async def test_receiver_that_accepts_and_closes_drops_no_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 60)  # the close ends it
    async with receiving(_close_soon) as port, sink_at(port) as sink:
        with pytest.raises(DeliveryError, match="broke"):
            await sink.deliver(attempts(1))


async def test_new_connection_is_on_probation_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 0.3)
    loop = asyncio.get_running_loop()
    async with receiving(_read_all) as port:
        sink = sink_at(port)
        for _ in range(2):
            async with sink:
                begun = loop.time()
                await sink.deliver(attempts(1))
                assert loop.time() - begun > 0.29
                monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 100)
                async with asyncio.timeout(60):
                    await sink.deliver(attempts(1))
                monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 0.3)


async def test_text_of_a_syslog_receiver_is_ignored() -> None:
    async with receiving(_send_text) as port, sink_at(port) as sink:
        for _ in range(3):
            assert await sink.deliver(attempts(3)) == DELIVERED


async def test_events_unread_at_the_close_of_the_receiver_are_not_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 60)  # the close ends it
    async with receiving(_read_once) as port, sink_at(port) as sink:
        with pytest.raises(DeliveryError, match="broke"):
            await sink.deliver(attempts(3))


async def test_events_that_the_receiver_never_read_are_not_delivered_after_its_exit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with sink_at(server.getsockname()[1]) as sink:
            delivery = asyncio.create_task(sink.deliver(attempts(500)))
            await wait_until_blocked(sink)
            assert not delivery.done()
            server.close()
            with pytest.raises(DeliveryError, match="broke"):
                await asyncio.wait_for(delivery, 60)


async def test_cancelled_delivery_is_not_completed_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = sink_at(server.getsockname()[1])
        async with sink:
            delivery = asyncio.create_task(sink.deliver(attempts(500) * 20))
            await wait_until_blocked(sink)
            delivery.cancel()
        connection, _ = server.accept()
        with connection, pytest.raises(ConnectionResetError):
            read_all(connection)
