"""Configuration of a sink of type ``nats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable, require_extra
from ocsf_nft.config.sinks.host_port import host
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

_SCHEMES: Final = ("nats://", "tls://")


def _server(text: str) -> str:
    if "@" in text:
        raise UsageError("must not hold a user, password or token: give them as separate keys")
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            host(text.removeprefix(scheme))
            return text
    raise UsageError("must be a URL that begins with nats:// or tls://")


_Server = Annotated[str, checked(_server)]
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

    type: Literal["nats"]
    servers: Annotated[tuple[_Server, ...], Field(min_length=1)]
    subject: _Subject
    class_subjects: bool = False
    stream: _Stream | None = None
    token: SecretTable | None = None
    user: Text | None = None
    password: SecretTable | None = None
    nkey: SecretTable | None = None
    credentials: Annotated[Path, FileName] | None = None
    tls: TlsTable | None = None
    tls_first: bool = False

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("has one of user and password: give both")
        shown = (self.token, self.password, self.nkey, self.credentials)
        if sum(each is not None for each in shown) > 1:
            raise ValueError("has more than one of token, password, nkey, credentials: give one")
        return self

    @property
    def target(self) -> str:
        """Return the sink's default name, for example ``nats://nats.example:4222/ocsf``."""
        subject = f"{self.subject}.*" if self.class_subjects else self.subject
        return f"nats://{urlsplit(self.servers[0]).netloc}/{subject}"

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra for NATS is not installed."""
        require_extra("nats", self.type, "nats", "nkeys")
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
