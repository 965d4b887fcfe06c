"""Events to a topic of Kafka.

A record's key is the sandbox, so that one sandbox's events stay in one partition, in order; its
header ``uid`` is the event's, by which a consumer knows one that came twice. The topic must not be
compacted: that would keep one event a sandbox.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import aiokafka  # type: ignore[import-untyped]  # it ships no types
from aiokafka import errors

from ocsf_nft.delivery.sinks.base import Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.kafka_log import Listener
from ocsf_nft.delivery.sinks.loop_thread import Aside
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.secrets import Secret
    from ocsf_nft.delivery.tls import Tls

Mechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_UID: Final = "uid"
#: What goes to a partition at a time, at most; a broker takes 1 MiB by default.
_BATCH_BYTES: Final = 1 << 18
#: Parts of the time that a delivery may take: all of it, so that what is wrong is told before who
#: waits has had enough; and one request, so that there can be another.
_TRY: Final = 0.9
_REQUEST: Final = 0.4
#: What a broker says of what a batch is, not of how things are.
_REFUSING: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
)
#: By whether there is SASL and TLS.
_PROTOCOLS: Final = {
    (False, False): "PLAINTEXT",
    (False, True): "SSL",
    (True, False): "SASL_PLAINTEXT",
    (True, True): "SASL_SSL",
}


class Kafka(Sink):
    """Sends events, and waits until all replicas that are in sync have them.

    ``servers`` are the ``host:port`` of some brokers. An event of more than ``max_bytes`` is
    refused. ``mechanism`` is SASL's, with ``user`` and ``password``; None for none.
    ``timeout_seconds`` is what a delivery may take: while a partition has no leader, or a broker
    is away, it is tried again until that is nearly over.
    """

    def __init__(  # noqa: PLR0913 - what a producer is made of
        self,
        *,
        servers: Sequence[str],
        topic: str,
        is_compressed: bool = True,
        max_bytes: int,
        mechanism: Mechanism | None = None,
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout_seconds: float,
    ) -> None:
        self._servers = tuple(servers)
        self._topic = topic
        self._is_compressed = is_compressed
        self._max_bytes = max_bytes
        self._mechanism = mechanism
        self._user = user
        self._password = password
        self._tls = tls
        self._timeout_seconds = timeout_seconds
        self._aside = Aside("kafka")
        self._listener = Listener()
        self._producer: Any = None
        self._is_spent = False

    async def open(self) -> None:
        """Connect; raises DeliveryError when no broker can be connected to or has the topic."""
        self._aside.begin()
        try:
            await self._aside.do(self._open())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Cut the connections: all that was acknowledged is there."""
        try:
            if self._aside.is_begun:
                await self._aside.do(self._abandon())
        finally:
            await self._aside.end()
            self._listener.end()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send a batch, and wait for its acknowledgements.

        Raises DeliveryError, and RefusedError when a broker won't have what went to a partition.
        """
        if self._is_spent:
            await self.close()
            await self.open()
        return await self._aside.do(self._delivered(messages))

    async def _open(self) -> None:
        password = None if self._password is None else self._password.read()
        context = None if self._tls is None else self._tls.context()
        self._listener.begin(hidden=() if password is None else (password,))
        try:
            async with asyncio.timeout(self._timeout_seconds * _TRY):
                self._producer = self._made(password, context)
                await self._producer.start()
                await self._producer.partitions_for(self._topic)
        except (errors.KafkaError, OSError) as error:
            # Not `from error`: its frames hold the password.
            raise self._failure(error) from None
        self._is_spent = False

    def _made(self, password: str | None, context: ssl.SSLContext | None) -> Any:
        sasl = {
            "sasl_mechanism": self._mechanism,
            "sasl_plain_username": self._user,
            "sasl_plain_password": password,
        }
        return aiokafka.AIOKafkaProducer(
            bootstrap_servers=list(self._servers),
            client_id="ocsf-nft",
            acks="all",
            enable_idempotence=True,
            compression_type="gzip" if self._is_compressed else None,
            max_batch_size=_BATCH_BYTES,
            max_request_size=self._max_bytes,
            request_timeout_ms=int(self._timeout_seconds * _REQUEST * 1000),
            security_protocol=_PROTOCOLS[self._mechanism is not None, context is not None],
            ssl_context=context,
            **(sasl if self._mechanism is not None else {}),
        )

    async def _abandon(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # It knows at once that it is closed; then it would wait for what nobody acknowledges.
            await asyncio.wait({asyncio.ensure_future(producer.stop())}, timeout=0)

    async def _delivered(self, messages: Sequence[Message]) -> Outcome:
        refused: list[Refusal] = []
        sent = []
        try:
            async with asyncio.timeout(self._timeout_seconds * _TRY):
                for message in messages:
                    try:
                        sent.append(await self._sent(message))
                    except errors.MessageSizeTooLargeError:
                        refused.append(Refusal(message, self._too_large))
                results = await asyncio.gather(*sent, return_exceptions=True)
        except (errors.KafkaError, OSError) as error:
            raise self._failure(error) from error
        self._check([result for result in results if isinstance(result, BaseException)])
        return Outcome(refused=tuple(refused))

    @property
    def _too_large(self) -> str:
        return (
            f"with its key and header it has more than max_message_bytes ({self._max_bytes}): "
            f"raise that, and topic {self._topic}'s max.message.bytes"
        )

    async def _sent(self, message: Message) -> asyncio.Future[Any]:
        """The acknowledgement to come; waits while too much is without one."""
        sent: asyncio.Future[Any] = await self._producer.send(
            self._topic,
            message.line,
            key=_key(message.event()),
            headers=[(_UID, message.uid.encode())],
        )
        return sent

    def _check(self, faults: Sequence[BaseException]) -> None:
        """Raise what speaks against a batch: DeliveryError, or RefusedError where it is the batch.

        A producer can't go on with a partition that refused a batch, since its sequence numbers
        have a gap now.
        """
        if not faults:
            return
        self._is_spent = True
        for fault in faults:
            if not isinstance(fault, _REFUSING):
                raise self._failure(fault)
        raise RefusedError(
            f"{self._name} won't have a batch for topic {self._topic} ({cause(faults[0])}): see "
            "its max.message.bytes"
        )

    @property
    def _name(self) -> str:
        return f"Kafka at {','.join(self._servers)}"

    def _failure(self, error: BaseException) -> DeliveryError:
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return DeliveryError(f"{self._name} has no topic {self._topic}: create it")
        if isinstance(error, errors.TopicAuthorizationFailedError):
            return DeliveryError(
                f"{self._name} lets {self._user or 'us'} write nothing to topic {self._topic}: "
                "grant WRITE on it"
            )
        # Of a broker that can't be reached, the library says why in its log alone.
        is_away = isinstance(error, errors.KafkaConnectionError | TimeoutError)
        why = (is_away and self._listener.last) or cause(error, self._listener.hidden)
        return DeliveryError(f"{self._name} can't be used: {why}")


def _key(event: Any) -> bytes | None:
    """The sandbox that an event is about; of one that is about none, the host."""
    for path in (("unmapped", "sandbox"), ("device", "hostname")):
        found = event
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found.encode()
    return None
