"""Configuration of sinks that send to message brokers: types ``kafka`` and ``nats``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

_FORM: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:(?P<port>[0-9]+))?")
_PORT_END: Final = 1 << 16


def _host_and_port(text: str) -> str:
    if _port(text) is None:
        raise UsageError(f"must have a port, as {text}:9092 has")
    return text


def _port(text: str) -> int | None:
    if "@" in text:
        raise UsageError("must not hold a user or password: give them as separate keys")
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"must be a host and port, such as broker.example:9092 or [2001:db8::7]:9092, "
            f"which {quoted(text)} is not"
        )
    if found["host"].startswith("["):
        try:
            ipaddress.IPv6Address(found["host"][1:-1])
        except ValueError as error:
            raise UsageError(
                f"must have an address of IPv6 in the brackets, which {quoted(text)} has not"
            ) from error
    if found["port"] is None:
        return None
    port = int(found["port"][:6])
    if not 0 < port < _PORT_END:
        raise UsageError("must have a port of 1 to 65535")
    return port


_KafkaServer = Annotated[str, checked(_host_and_port)]
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

    extra: ClassVar[str] = "kafka"
    modules: ClassVar[tuple[str, ...]] = ("aiokafka",)

    type: Literal["kafka"]
    servers: Annotated[tuple[_KafkaServer, ...], Field(min_length=1)]
    """Some of the brokers, as host:port."""
    topic: _Topic
    """Topic of the events."""
    compress: bool = True
    """Send batches compressed (gzip)."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    """Maximum size of an event; a larger one becomes a dead letter."""
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """SASL mechanism; needs user and password."""
    user: Text | None = None
    """User for SASL."""
    password: SecretTable | None = None
    """Password of the user."""
    tls: TlsTable | None = None
    """TLS settings."""
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0

    @model_validator(mode="after")
    def _shows_all_of_it(self) -> Self:
        given = [each is not None for each in (self.sasl, self.user, self.password)]
        if any(given) and not all(given):
            raise ValueError("has some of sasl, user and password: give all three, or none")
        return self

    @property
    def _target(self) -> str:
        return f"kafka://{self.servers[0]}/{self.topic}"

    def _sink(self) -> Sink:
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


_SCHEMES: Final = ("nats://", "tls://")


def _nats_server(text: str) -> str:
    if "@" in text:
        raise UsageError("must not hold a user, password or token: give them as separate keys")
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            _port(text.removeprefix(scheme))
            return text
    raise UsageError("must be a URL that begins with nats:// or tls://")


_NatsServer = Annotated[str, checked(_nats_server)]
#: Non-empty tokens between dots; none is a wildcard, or reserved for the server ($).
_Subject = Annotated[
    str, Field(max_length=200, pattern=r"^[A-Za-z0-9_:=/-]+(\.[A-Za-z0-9_:=/-]+)*$")
]
_Stream = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:=-]{1,255}$")]


class NatsSink(SinkTable):
    """NATS JetStream stream that stores the events; the ``subject`` selects the stream.

    ``servers`` are URLs that begin with nats:// or tls://. The sink tries them in random order, and
    uses the first server that it can reach. It never uses a server that is not listed, even if the
    server is in the same cluster. With ``class_subjects``, the class of the event is appended to
    the subject, for example ``ocsf.network_activity``.

    The sink does not create the stream. For the ``subject`` ``ocsf``, create one with
    ``nats stream add ocsf --subjects ocsf``. With ``class_subjects``, write ``--subjects 'ocsf.*'``
    instead. If ``stream`` is given, the subject must belong to the stream of that name.

    The header ``Nats-Msg-Id`` is the event's ``metadata.uid``. So an event that is sent twice
    within the stream's duplicate window is stored only once. Choose a duplicate window
    (``--dupe-window``) that is longer than the longest outage that you expect. An event larger than
    the server's ``max_payload`` or the stream's ``max_msg_size`` becomes a dead letter. If the
    stream is full and accepts no new events (``--discard new``), the sink waits.

    The sink logs in with a ``token``, with ``user`` and ``password``, or with an ``nkey`` (the seed
    of a user's key). ``credentials`` is in place of these: the path of a file that NATS's
    command-line tool ``nsc`` creates. A login is optional. With a tls:// URL, ``tls`` or
    ``tls_first``, the sink sends nothing in clear text. Otherwise the server decides whether TLS is
    used. Set ``tls_first`` if the server has ``handshake_first``.
    """

    extra: ClassVar[str] = "nats"
    modules: ClassVar[tuple[str, ...]] = ("nats", "nkeys")

    type: Literal["nats"]
    servers: Annotated[tuple[_NatsServer, ...], Field(min_length=1)]
    """URLs of servers of the cluster, nats:// or tls://."""
    subject: _Subject
    """Subject of the events."""
    class_subjects: bool = False
    """Append the class of an event to the subject."""
    stream: _Stream | None = None
    """Name of the stream that must have the subject."""
    token: SecretTable | None = None
    """Token."""
    user: Text | None = None
    """User; needs password."""
    password: SecretTable | None = None
    """Password of the user."""
    nkey: SecretTable | None = None
    """Seed of a user (nkey)."""
    credentials: Annotated[Path, FileName] | None = None
    """File of credentials, as nsc creates it."""
    tls: TlsTable | None = None
    """TLS settings."""
    tls_first: bool = False
    """Begin with TLS, for a server with handshake_first."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("has one of user and password: give both")
        shown = (self.token, self.password, self.nkey, self.credentials)
        if sum(each is not None for each in shown) > 1:
            raise ValueError("has more than one of token, password, nkey, credentials: give one")
        return self

    @property
    def reads(self) -> frozenset[Path]:
        """Return the files that the sink reads, among them the file of credentials."""
        return super().reads | ({self.credentials} if self.credentials is not None else set())

    @property
    def _target(self) -> str:
        subject = f"{self.subject}.*" if self.class_subjects else self.subject
        return f"nats://{urlsplit(self.servers[0]).netloc}/{subject}"

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.nats import Login, Nats  # noqa: PLC0415 - if configured

        login = Login(
            token=None if self.token is None else self.token.secret(),
            user=self.user,
            password=None if self.password is None else self.password.secret(),
            nkey=None if self.nkey is None else self.nkey.secret(),
            credentials=self.credentials,
        )
        return Nats(
            servers=self.servers,
            subject=self.subject,
            has_class=self.class_subjects,
            stream=self.stream,
            login=login,
            tls=None if self.tls is None else self.tls.tls(),
            is_tls_first=self.tls_first,
        )
