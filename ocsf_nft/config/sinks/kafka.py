"""Configuration of a sink of type ``kafka``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable, require_extra
from ocsf_nft.config.sinks.host_port import host_and_port

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

_Server = Annotated[str, checked(host_and_port)]
#: Names that brokers accept: not "." or "..".
_Topic = Annotated[
    str, Field(max_length=249, pattern=r"^(\.{0,2}[A-Za-z0-9_-]|\.{3})[A-Za-z0-9._-]*$")
]


class KafkaSink(SinkTable):
    """Topic of a Kafka cluster: each event is one record in the ``topic``.

    ``servers`` lists some of the brokers, as ``host:port``. These brokers report all other brokers.
    An event counts as delivered when all in-sync replicas have it (``acks=all``). The key of a
    record is the name of the sandbox. So the events of one sandbox stay in order, in one partition.
    For an event without a sandbox, the key is the name of the host. After the sink connects again,
    an event can arrive twice. To detect the second copy, use the header ``uid``, which is the
    event's ``metadata.uid``. The topic must not be compacted, since compaction would leave only one
    event for each sandbox.

    An event larger than ``max_message_bytes``, or than the topic's ``max.message.bytes``, becomes a
    dead letter. ``compress`` uses gzip. ``sasl`` is the login mechanism; ``user`` and ``password``
    are then required. Without ``tls``, the mechanism PLAIN sends the password in clear text. With
    ``tls = {}``, the brokers' certificates are verified with the system's authorities. The account
    needs the right WRITE on the topic. Before Kafka 2.8, it also needs IDEMPOTENT_WRITE on the
    cluster.
    """

    type: Literal["kafka"]
    servers: Annotated[tuple[_Server, ...], Field(min_length=1)]
    topic: _Topic
    compress: bool = True
    max_message_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    user: Text | None = None
    password: SecretTable | None = None
    tls: TlsTable | None = None
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0

    @model_validator(mode="after")
    def _shows_all_of_it(self) -> Self:
        given = [each is not None for each in (self.sasl, self.user, self.password)]
        if any(given) and not all(given):
            raise ValueError("has some of sasl, user and password: give all three, or none")
        return self

    @property
    def target(self) -> str:
        """Return the sink's default name, for example ``kafka://kafka.example:9092/ocsf``."""
        return f"kafka://{self.servers[0]}/{self.topic}"

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra for Kafka is not installed."""
        require_extra("kafka", self.type, "aiokafka")
        from ocsf_nft.delivery.sinks.kafka import Kafka  # noqa: PLC0415 - only where configured

        return Kafka(
            servers=self.servers,
            topic=self.topic,
            is_compressed=self.compress,
            max_bytes=self.max_message_bytes,
            mechanism=self.sasl,
            user=self.user,
            password=None if self.password is None else self.password.secret(),
            tls=None if self.tls is None else self.tls.tls(),
            timeout_seconds=self.timeout_seconds,
        )
