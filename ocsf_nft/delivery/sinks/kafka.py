"""Sink for a Kafka topic, with one Kafka record for each event.

The record's key is the name of the event's sandbox, or the host's name if there is no sandbox. The
topic must not be compacted: only the last record of each key would remain.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.loop_thread import LoopThread
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ocsf_nft.delivery.receiver_settings import Secret, Tls
    from ocsf_nft.delivery.sinks.kafka_log import LogCapture

Mechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

#: Header with the event's identifier, by which a consumer can recognize duplicates.
_UID: Final = "uid"
#: Maximum size of a batch for one partition; a broker accepts 1 MiB by default.
_BATCH_BYTES: Final = 1 << 18
#: Shares of the delivery timeout. The producer stops before the timeout, so that the cause can be
#: reported. One request takes less than half, so that there is time for another one.
_DELIVERY_SHARE: Final = 0.9
_REQUEST_SHARE: Final = 0.4
#: Security protocols; a key is (uses SASL, uses TLS).
_PROTOCOLS: Final = {
    (False, False): "PLAINTEXT",
    (False, True): "SSL",
    (True, False): "SASL_PLAINTEXT",
    (True, True): "SASL_SSL",
}


@dataclass(kw_only=True, eq=False, repr=False)
class Kafka(Sink):
    """Sink that sends events to a topic, and waits until all in-sync replicas have them."""

    #: Addresses (``host:port``) of some brokers.
    servers: Sequence[str]
    topic: str
    is_compressed: bool = True
    #: Maximum size of an event, including its key and header.
    max_bytes: int
    #: SASL mechanism of the login; None means no login.
    mechanism: Mechanism | None = None
    user: str | None = None
    password: Secret | None = None
    tls: Tls | None = None
    #: Limit of each delivery and of each attempt to connect.
    timeout_seconds: float
    _thread: LoopThread = field(init=False, default_factory=lambda: LoopThread("kafka"))
    _log_capture: LogCapture | None = field(init=False, default=None)
    _producer: Any = field(init=False, default=None)
    _must_reconnect: bool = field(init=False, default=False)

    async def open(self) -> None:
        """Connect to Kafka; raises DeliveryError if that fails, or if the topic does not exist."""
        self._thread.start()
        try:
            await self._thread.run(self._open())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections at once, without waiting for pending acknowledgements."""
        try:
            if self._thread.is_running:
                await self._thread.run(self._drop_producer())
        finally:
            await self._thread.stop()
            if self._log_capture is not None:
                self._log_capture.stop()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send a batch and wait for its acknowledgements.

        Events that are too large are not sent, but returned in the result's ``refused``. Raises
        RefusedError if brokers refuse sent events because of their content. Raises DeliveryError
        if any event fails for another reason.
        """
        if self._must_reconnect:
            await self.close()
            await self.open()
        return await self._thread.run(self._deliver(messages))

    async def _open(self) -> None:
        # The process that only creates a sink needs no library.
        from aiokafka import errors  # type: ignore[import-untyped]  # noqa: PLC0415 - it ships no types

        from ocsf_nft.delivery.sinks.kafka_log import LogCapture  # noqa: PLC0415 - it needs aiokafka

        password = None if self.password is None else self.password.read()
        context = None if self.tls is None else self.tls.context()
        self._log_capture = LogCapture()
        self._log_capture.start(secrets=() if password is None else (password,))
        try:
            async with asyncio.timeout(self.timeout_seconds * _DELIVERY_SHARE):
                self._producer = self._create_producer(password, context)
                await self._producer.start()
                await self._producer.partitions_for(self.topic)
        except (errors.KafkaError, OSError) as error:
            # Not `from error`: its frames hold the password.
            raise self._failure(error) from None
        self._must_reconnect = False

    def _create_producer(self, password: str | None, context: ssl.SSLContext | None) -> Any:
        import aiokafka  # noqa: PLC0415 - as in _open

        sasl = {
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.user,
            "sasl_plain_password": password,
        }
        return aiokafka.AIOKafkaProducer(
            bootstrap_servers=list(self.servers),
            client_id="ocsf-nft",
            acks="all",
            enable_idempotence=True,
            compression_type="gzip" if self.is_compressed else None,
            max_batch_size=_BATCH_BYTES,
            max_request_size=self.max_bytes,
            request_timeout_ms=int(self.timeout_seconds * _REQUEST_SHARE * 1000),
            security_protocol=_PROTOCOLS[self.mechanism is not None, context is not None],
            ssl_context=context,
            **(sasl if self.mechanism is not None else {}),
        )

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # stop() closes the producer at once. It would then wait for pending acknowledgements.
            await asyncio.wait({asyncio.ensure_future(producer.stop())}, timeout=0)

    async def _deliver(self, messages: Sequence[Message]) -> BatchResult:
        from aiokafka import errors  # noqa: PLC0415 - as in _open

        refused: list[Refusal] = []
        sent = []
        try:
            async with asyncio.timeout(self.timeout_seconds * _DELIVERY_SHARE):
                for message in messages:
                    try:
                        sent.append(await self._send(message))
                    except errors.MessageSizeTooLargeError:
                        reason = (
                            "with its key and header it has more than max_message_bytes "
                            f"({self.max_bytes}): raise that, and topic {self.topic}'s "
                            "max.message.bytes"
                        )
                        refused.append(Refusal(message, reason))
                results = await asyncio.gather(*sent, return_exceptions=True)
        except (errors.KafkaError, OSError) as error:
            raise self._failure(error) from error
        self._check([result for result in results if isinstance(result, BaseException)])
        return BatchResult(refused=tuple(refused))

    async def _send(self, message: Message) -> asyncio.Future[Any]:
        # Waits if too many earlier messages are not acknowledged yet.
        fields = LineFields(message.line)
        # All events of a sandbox have one key, so they stay in one partition, in order.
        key = fields.unmapped_text("sandbox") or fields.hostname()
        sent: asyncio.Future[Any] = await self._producer.send(
            self.topic,
            message.line,
            key=key.encode() or None,
            headers=[(_UID, message.uid.encode())],
        )
        return sent

    def _check(self, faults: Sequence[BaseException]) -> None:
        """Raise RefusedError if brokers refused all failed messages, else DeliveryError."""
        from aiokafka import errors  # noqa: PLC0415 - as in _open

        if not faults:
            return
        # The old producer can't continue: a refused batch leaves a gap in its batch numbers.
        self._must_reconnect = True
        # They refuse the content of a batch, whatever the state of the broker.
        refusals = (
            errors.MessageSizeTooLargeError,
            errors.RecordListTooLargeError,
            errors.InvalidTimestampError,
        )
        for fault in faults:
            if not isinstance(fault, refusals):
                raise self._failure(fault)
        raise RefusedError(
            f"{self._name} refuses a batch for topic {self.topic} ({cause(faults[0])}): check "
            "its max.message.bytes"
        )

    @property
    def _name(self) -> str:
        return f"Kafka at {','.join(self.servers)}"

    def _failure(self, error: BaseException) -> DeliveryError:
        from aiokafka import errors  # noqa: PLC0415 - as in _open

        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return DeliveryError(f"{self._name} has no topic {self.topic}: create it")
        if isinstance(error, errors.TopicAuthorizationFailedError):
            return DeliveryError(
                f"{self._name} does not let {self.user or 'us'} write to topic {self.topic}: "
                "grant WRITE on it"
            )
        # For an unreachable broker, aiokafka reports the cause only in its log.
        is_unreachable = isinstance(error, errors.KafkaConnectionError | TimeoutError)
        log = self._log_capture
        explanation = (is_unreachable and log is not None and log.last) or cause(
            error, () if log is None else log.secrets
        )
        return DeliveryError(f"{self._name} can't be used: {explanation}")
