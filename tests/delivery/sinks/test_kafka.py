"""Kafka sink against librdkafka's mock broker; kcat reads the records."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]  # it ships no types

from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.base import DELIVERED, Message
from ocsf_nft.delivery.sinks.kafka import Kafka
from ocsf_nft.errors import DeliveryError, RefusedError
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import lifecycle
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import CONTEXT, NOW_NS, TIME_NS
from tests.delivery.sinks.batches import messages
from tests.delivery.sinks.brokers import Certificates, KafkaBroker, KafkaRelay
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_REFUSED = Mapper(CONTEXT).network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
_STARTED = lifecycle(CONTEXT, activity="start", time_ns=TIME_NS)
#: Maximum duration of an immediate report, for a busy machine. The client waits longer if its
#: ``timeout_seconds`` is `_PATIENT_SECONDS`: 0.4 of that for each request.
_IMMEDIATE_SECONDS = 60
_PATIENT_SECONDS = 300.0

# Numbers of Kafka's protocol: requests, and errors.
_PRODUCE, _INIT_PRODUCER_ID = 0, 22
_UNKNOWN_TOPIC, _NOT_LEADER, _TOO_LARGE, _NOT_ENOUGH_REPLICAS, _NOT_ALLOWED = 3, 6, 10, 19, 29
_CLUSTER_NOT_ALLOWED, _OUT_OF_ORDER = 31, 45


@pytest.fixture
def broker() -> Iterator[KafkaBroker]:
    with KafkaBroker(ocsf=3) as broker:
        yield broker


class Limits:
    """Time limits of sinks, which a test ends itself, as soon as it has seen the cause."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._latest: asyncio.Timeout
        self._create = asyncio.timeout
        patch.setattr(asyncio, "timeout", self._limit)

    def _limit(self, seconds: float | None) -> asyncio.Timeout:
        self._latest = self._create(seconds)
        return self._latest

    async def end_delivery(self, sink: Kafka, delivery: asyncio.Task[Any], cause: str) -> None:
        """Wait until the sink knows a cause, and let the limit of its only delivery expire.

        If the sink never knows the cause, its own limit ends the delivery.
        """
        while cause not in _captured(sink) and not delivery.done():  # noqa: ASYNC110 - a log
            await asyncio.sleep(0.01)
        loop = sink._thread._loop
        assert loop is not None
        loop.call_soon_threadsafe(self._latest.reschedule, 0)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    return Limits(monkeypatch)


def _sink(broker: KafkaBroker | KafkaRelay, **given: Any) -> Kafka:
    return _sink_at(broker.host, **{"timeout_seconds": 20.0} | given)


def _sink_at(server: str, **given: Any) -> Kafka:
    options: dict[str, Any] = {
        "servers": [server],
        "topic": "ocsf",
        "max_bytes": 1 << 20,
        "timeout_seconds": 30.0,
    } | given
    return Kafka(**options)


def _events_of(sandbox: str, *numbers: int) -> list[Message]:
    return [
        Message(
            f"uid-{sandbox}-{n}", b'{"n":%d,"unmapped":{"sandbox":"%s"}}' % (n, sandbox.encode())
        )
        for n in numbers
    ]


@pytest.mark.parametrize("is_compressed", [True, False])
async def test_topic_has_each_event_unchanged(broker: KafkaBroker, is_compressed: bool) -> None:
    lines = [_REFUSED.to_json(), _STARTED.to_json(), b"{}", '{"ü":"\u2028"}'.encode()]
    async with _sink(broker, is_compressed=is_compressed) as sink:
        assert await sink.deliver(messages(*lines)) == DELIVERED
    records = broker.records("ocsf")
    found = {each["headers"][1]: each for each in records}
    assert [found[f"uid-{n}"]["payload"].encode() for n in range(4)] == lines
    assert [found[f"uid-{n}"]["key"] for n in range(4)] == ["sb1", "host-1", None, None]
    assert {each["headers"][0] for each in found.values()} == {"uid"}
    assert len(records) == 4


@pytest.mark.parametrize("is_compressed", [True, False])
async def test_kafka_sink_compresses_batches_if_configured(
    broker: KafkaBroker, is_compressed: bool
) -> None:
    line = _STARTED.to_json()
    async with (
        KafkaRelay(broker) as relay,
        _sink(relay, is_compressed=is_compressed) as sink,
    ):
        await sink.deliver(messages(line))
        assert any(line in request for request in relay.requests) != is_compressed


async def test_events_of_any_allowed_size_are_delivered(broker: KafkaBroker) -> None:
    lines = [b'"%d%s"' % (n, b"x" * size) for n in range(4) for size in (10, 400_000, 1_000_000)]
    async with _sink(broker, is_compressed=False) as sink:
        assert await sink.deliver(messages(*lines)) == DELIVERED
    assert sorted(each["payload"].encode() for each in broker.records("ocsf")) == sorted(lines)


async def test_events_of_one_sandbox_are_in_one_partition_and_in_order(broker: KafkaBroker) -> None:
    names = [f"sb{n}" for n in range(7)]
    async with _sink(broker) as sink:
        for start in (0, 700):
            batch = [
                each for n in range(start, start + 700) for each in _events_of(names[n % 7], n)
            ]
            assert await sink.deliver(batch) == DELIVERED
    records = broker.records("ocsf")
    assert len(records) == 1400
    for number, name in enumerate(names):
        own = [each for each in records if each["key"] == name]
        assert len({each["partition"] for each in own}) == 1
        assert [each["headers"][1] for each in own] == [
            f"uid-{name}-{n}" for n in range(number, 1400, 7)
        ]
    assert len({each["partition"] for each in records}) > 1


async def test_error_for_a_broker_that_is_down_is_immediate_and_one_sentence() -> None:
    sink = _sink_at(f"127.0.0.1:{(port := free_port())}", timeout_seconds=_PATIENT_SECONDS)
    async with asyncio.timeout(_IMMEDIATE_SECONDS):
        with pytest.raises(DeliveryError, match=f"{port} can't be used: .*Connection refused"):
            await sink.open()
    await _wait_for_thread_exit()


async def test_kafka_sink_needs_one_reachable_broker(broker: KafkaBroker) -> None:
    for _ in range(4):
        async with _sink(broker, servers=[broker.host, "127.0.0.1:1"]) as sink:
            await sink.deliver(messages(b"{}"))
    assert len(broker.records("ocsf")) == 4


async def test_kafka_sink_names_a_missing_or_forbidden_topic(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = AIOKafkaClient._wait_on_metadata

    async def wait_shortly(client: Any, topic: str) -> Any:
        # The client waits so long for the topic. Its connections have their own limits.
        client._request_timeout_ms = 300
        return await wait(client, topic)

    broker.send_command("lose", "ocsf", _UNKNOWN_TOPIC)
    with monkeypatch.context() as patch:
        patch.setattr(AIOKafkaClient, "_wait_on_metadata", wait_shortly)
        with pytest.raises(DeliveryError, match="has no topic ocsf: create it"):
            await _sink(broker).open()
    broker.send_command("lose", "ocsf", _NOT_ALLOWED)
    with pytest.raises(DeliveryError, match="does not let us write to topic ocsf: grant WRITE"):
        await _sink(broker).open()
    broker.send_command("lose", "ocsf", 0)
    async with _sink(broker) as sink:
        assert await sink.deliver(messages(b"{}")) == DELIVERED


async def test_kafka_sink_retries_errors_that_end_in_time(broker: KafkaBroker) -> None:
    async with _sink(broker) as sink:
        broker.send_command("fail", _PRODUCE, _NOT_LEADER, 3)
        assert await sink.deliver(_events_of("sb1", 0, 1, 2)) == DELIVERED
    assert [each["headers"][1] for each in broker.records("ocsf")] == [
        "uid-sb1-0",
        "uid-sb1-1",
        "uid-sb1-2",
    ]


async def test_kafka_sink_reports_an_error_that_lasts(broker: KafkaBroker, limits: Limits) -> None:
    async with _sink(broker) as sink:
        broker.send_command("fail", _PRODUCE, _NOT_ENOUGH_REPLICAS, 1000)
        delivery = asyncio.create_task(sink.deliver(messages(b"{}")))
        await limits.end_delivery(sink, delivery, "NotEnoughReplicas")
        with pytest.raises(DeliveryError, match="NotEnoughReplicas"):
            await delivery


async def test_kafka_sink_replaces_a_failed_producer(
    broker: KafkaBroker,
) -> None:
    sink = _sink(broker)
    async with sink:
        broker.send_command("fail", _PRODUCE, _NOT_LEADER, 1)
        broker.send_command("fail", _PRODUCE, _OUT_OF_ORDER, 1)
        with pytest.raises(DeliveryError, match="OutOfOrderSequenceNumber"):
            await sink.deliver(messages(b"1"))
        assert await sink.deliver(messages(b"2")) == DELIVERED
    async with sink:
        assert await sink.deliver(messages(b"3")) == DELIVERED
    assert sorted(each["payload"] for each in broker.records("ocsf")) == ["2", "3"]


async def test_kafka_sink_refuses_an_event_above_its_limit_and_delivers_the_others(
    broker: KafkaBroker,
) -> None:
    batch = messages(b'"1"', b'"%s"' % (b"x" * 20_000), b'"2"')
    async with _sink(broker, max_bytes=20_000) as sink:
        outcome = await sink.deliver(batch)
    assert [each.message for each in outcome.refused] == [batch[1]]
    assert "max_message_bytes (20000)" in outcome.refused[0].reason
    assert sorted(each["payload"] for each in broker.records("ocsf")) == ['"1"', '"2"']


async def test_kafka_sink_refuses_a_batch_above_the_limit_of_the_broker(
    broker: KafkaBroker,
) -> None:
    async with KafkaRelay(broker) as relay, _sink(relay) as sink:
        assert relay.count(_INIT_PRODUCER_ID) == 1
        broker.send_command("fail", _PRODUCE, _TOO_LARGE, 1)
        with pytest.raises(RefusedError, match=r"MessageSizeTooLarge.*max\.message\.bytes"):
            await sink.deliver(_events_of("sb1", 0, 1))
        assert await sink.deliver(_events_of("sb1", 2)) == DELIVERED
        # A new producer has new sequence numbers: the old one's have a gap.
        assert relay.count(_INIT_PRODUCER_ID) == 2
    assert [each["headers"][1] for each in broker.records("ocsf")] == ["uid-sb1-2"]


async def test_kafka_sink_reports_a_missing_permission_for_idempotence(broker: KafkaBroker) -> None:
    broker.send_command("fail", _INIT_PRODUCER_ID, _CLUSTER_NOT_ALLOWED, 100)
    with pytest.raises(DeliveryError, match="ClusterAuthorizationFailed"):
        await _sink(broker).open()


async def test_kafka_sink_reports_a_partition_without_a_leader(broker: KafkaBroker) -> None:
    async with _sink(broker) as sink:
        sink.timeout_seconds = 1.0  # from now on: any cause is right
        for partition in range(3):
            broker.send_command("leader", "ocsf", partition, -1)
        with pytest.raises(DeliveryError, match="can't be used"):
            await sink.deliver(messages(b"{}"))


async def test_broker_that_dies_in_a_delivery_gets_the_batch_after_its_restart(
    broker: KafkaBroker, limits: Limits
) -> None:
    batch = _events_of("sb1", *range(5000))
    sink = _sink(broker)
    async with sink:
        broker.send_command("slow", 60_000)
        delivery = asyncio.create_task(sink.deliver(batch))
        await asyncio.sleep(0.1)
        assert not delivery.done()
        broker.send_command("down")
        await limits.end_delivery(sink, delivery, "Connection refused")
        with pytest.raises(DeliveryError, match=r"can't be used: (?!Unable to update)"):
            await delivery
    with pytest.raises(DeliveryError, match="can't be used"):
        await sink.open()
    broker.send_command("slow", 0)
    broker.send_command("up")
    async with sink:
        assert await sink.deliver(batch) == DELIVERED
    found = [each["headers"][1] for each in broker.records("ocsf")]
    assert list(dict.fromkeys(found[-5000:])) == [each.uid for each in batch]


async def test_cancelled_delivery_does_not_wait_for_a_silent_broker(
    broker: KafkaBroker,
) -> None:
    batch = messages(*(b'"%s"' % (b"x" * 60_000) for _ in range(500)))
    sink = _sink(broker, timeout_seconds=_PATIENT_SECONDS)
    async with asyncio.timeout(_PATIENT_SECONDS):
        await sink.open()
        broker.freeze()
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await sink.deliver(batch)
            async with asyncio.timeout(_IMMEDIATE_SECONDS):
                await sink.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await sink.open()
            await _wait_for_thread_exit()
        finally:
            broker.thaw()
        async with sink:
            assert await sink.deliver(messages(b"{}")) == DELIVERED


async def test_sink_that_is_not_connected_delivers_nothing() -> None:
    with pytest.raises(DeliveryError, match="kafka is not connected"):
        await _sink_at("127.0.0.1:1").deliver(messages(b"{}"))


async def test_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broker: KafkaBroker
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    async with _sink(broker) as sink:
        sink.timeout_seconds = 1.0  # from now on: only the printed text counts
        broker.send_command("down")
        with pytest.raises(DeliveryError):
            await sink.deliver(messages(b"{}"))
    with pytest.raises(DeliveryError):
        await sink.open()
    logging.getLogger("aiokafka").error("too late")
    assert capfd.readouterr() == ("", "")


async def test_kafka_sink_captures_the_log_of_its_own_thread(
    broker: KafkaBroker,
) -> None:
    async def log() -> None:
        logging.getLogger("aiokafka").warning("\x1b[31m %s", "x" * 500)

    async with _sink(broker) as sink, _sink(broker) as other:
        await sink._thread.run(log())
        assert _captured(other) == ""
        assert _captured(sink) == "?[31m " + "x" * 194


def _captured(sink: Kafka) -> str:
    """Return what the library has logged last for a sink; empty before the sink is open."""
    return "" if sink._log_capture is None else sink._log_capture.last


async def _wait_for_thread_exit() -> None:
    for thread in threading.enumerate():
        if thread.name == "kafka":
            await asyncio.to_thread(thread.join, _IMMEDIATE_SECONDS)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_tls_with_the_right_authority_delivers(
    broker: KafkaBroker, certificates: Certificates
) -> None:
    async with (
        KafkaRelay(broker, context=certificates.context("127.0.0.1")) as relay,
        _sink(relay, tls=Tls(ca=certificates.ca)) as sink,
    ):
        assert await sink.deliver(messages(b"{}")) == DELIVERED
    assert len(broker.records("ocsf")) == 1


@pytest.mark.parametrize(
    ("name", "trusted"), [("127.0.0.1", "other_ca"), ("127.0.0.2", "ca"), ("127.0.0.1", None)]
)
async def test_error_names_a_wrong_certificate(
    broker: KafkaBroker, certificates: Certificates, name: str, trusted: str | None
) -> None:
    tls = Tls(ca=None if trusted is None else getattr(certificates, trusted))
    async with KafkaRelay(broker, context=certificates.context(name)) as relay:
        with pytest.raises(DeliveryError, match="its certificate is not trusted"):
            await _sink(relay, tls=tls).open()


async def test_broker_that_requires_a_certificate_accepts_ours(
    broker: KafkaBroker, certificates: Certificates
) -> None:
    context = certificates.context("127.0.0.1", requires_client=True)
    ours = Tls(ca=certificates.ca, certificate=certificates.certificate, key=certificates.key)
    async with KafkaRelay(broker, context=context) as relay:
        async with _sink(relay, tls=ours) as sink:
            assert await sink.deliver(messages(b"{}")) == DELIVERED
        with pytest.raises(DeliveryError, match="can't be used"):
            await _sink(relay, tls=Tls(ca=certificates.ca)).open()


def _plain(mechanism: str) -> Callable[[bytes], bytes | None]:
    """Return a broker's side of PLAIN (RFC 4616), for user ``me`` with password ``right``."""
    assert mechanism == "PLAIN"
    return lambda message: b"" if message.split(b"\0")[1:] == [b"me", b"right"] else None


def _scram(mechanism: str) -> Callable[[bytes], bytes | None]:
    """Return a broker's side of SCRAM (RFC 5802, 5.1) for the same user and password."""
    digest = mechanism.removeprefix("SCRAM-").replace("-", "").lower()
    salted = hashlib.pbkdf2_hmac(digest, b"right", b"salt", 4096)
    received: list[bytes] = []

    def keyed(key: bytes, text: bytes) -> bytes:
        return hmac.digest(key, text, digest)

    def step(message: bytes) -> bytes | None:
        if not received:
            bare = message.removeprefix(b"n,,")
            nonce = bare.split(b",r=")[1] + b"ours"
            first = b"r=%s,s=%s,i=4096" % (nonce, base64.b64encode(b"salt"))
            received.extend((bare, first))
            return first if bare.startswith(b"n=me,") else None
        final, _, proof = message.rpartition(b",p=")
        text = b",".join((*received, final))
        client = keyed(salted, b"Client Key")
        signature = keyed(hashlib.new(digest, client).digest(), text)
        proved = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        if base64.b64decode(proof) != proved:
            return None
        return b"v=" + base64.b64encode(keyed(keyed(salted, b"Server Key"), text))

    return step


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("has_tls", [True, False])
async def test_kafka_sink_logs_in_with_a_password_and_masks_it_in_errors(
    broker: KafkaBroker, certificates: Certificates, tmp_path: Path, mechanism: str, has_tls: bool
) -> None:
    context = certificates.context("127.0.0.1") if has_tls else None
    path = tmp_path / "password"
    given: dict[str, Any] = {
        "mechanism": mechanism,
        "user": "me",
        "password": Secret("file", str(path)),
        "tls": Tls(ca=certificates.ca) if has_tls else None,
    }
    sasl = _plain if mechanism == "PLAIN" else _scram
    async with KafkaRelay(broker, context=context, sasl=sasl) as relay:
        path.write_text("hunter2\n")
        sink = _sink(relay, **given)
        with pytest.raises(DeliveryError, match="give credentials that it accepts") as caught:
            await sink.open()
        assert "hunter2" not in str(caught.value)
        path.write_text("right\n")
        async with sink:
            assert await sink.deliver(messages(b"{}")) == DELIVERED
        anonymous = _sink(relay, tls=given["tls"], timeout_seconds=1.0)
        with pytest.raises(DeliveryError, match="can't be used"):
            await anonymous.open()
    assert len(broker.records("ocsf")) == 1


async def test_text_of_a_broker_is_short_printable_and_without_secrets(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("hunter2")
    password = Secret("file", str(tmp_path / "password"))
    text = b"hunter2 is \x1b[31m wrong " + b"x" * 500
    async with KafkaRelay(broker, sasl=lambda _: lambda _: None, error_text=text) as relay:
        with pytest.raises(DeliveryError, match=r"\*\*\* is \?\[31m wrong") as caught:
            await _sink(relay, mechanism="PLAIN", user="me", password=password).open()
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\4abcd", b"\0\0\0\1a"]
)
async def test_error_for_a_server_that_is_no_broker_is_one_sentence(answer: bytes) -> None:
    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(DeliveryError, match="can't be used"):
            await _sink_at(f"127.0.0.1:{port}", timeout_seconds=2.0).open()
    finally:
        server.close()
