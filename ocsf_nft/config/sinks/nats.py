"""What a file says of a sink of type ``nats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.config.sinks.host_port import host
from ocsf_nft.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

_SCHEMES: Final = ("nats://", "tls://")


def _server(text: str) -> str:
    """A server's URL: a scheme, a host and a port, nothing more; raises UsageError."""
    if "@" in text:
        raise UsageError("must not hold a user, password or token: give them as keys of their own")
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            host(text.removeprefix(scheme))
            return text
    raise UsageError("must be a URL that begins with nats:// or tls://")


_Server = Annotated[str, checked(_server)]
#: Tokens between dots, none of them empty; none is a wildcard, or of the server's own ($).
_Subject = Annotated[
    str, Field(max_length=200, pattern=r"^[A-Za-z0-9_:=/-]+(\.[A-Za-z0-9_:=/-]+)*$")
]
_Stream = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:=-]{1,255}$")]


class NatsSink(SinkTable):
    """A stream of NATS JetStream, by its ``subject``.

    ``servers`` are URLs, nats:// or tls://; one that can be connected to is enough, and others of
    its cluster are not asked for. With ``class_subjects`` the event's class is a last token of the
    subject: ``ocsf.network_activity``. No stream is made: one has to have the subject (``nats
    stream add ocsf --subjects 'ocsf.>'``), and where ``stream`` is given, it has to be that one.
    The event's ``metadata.uid`` is the header ``Nats-Msg-Id``, so that an event which is sent again
    is there once: choose a duplicate window of the stream that is longer than an answer may be lost
    for (``--dupe-window``). What is larger than the server's ``max_payload`` or the stream's
    ``max_msg_size`` becomes a dead letter. A stream that is full (``--discard new``) is waited for.

    Credentials are none, a ``token``, ``user`` and ``password``, an ``nkey`` (a user's seed), or a
    file of ``credentials``, as nsc makes it. A URL of tls:// or ``tls`` means that nothing is sent
    in the clear, whatever the server wants; with neither, it is for the server to say.
    ``tls_first`` is for one with ``handshake_first``.
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
        """The first server, with the subject."""
        subject = f"{self.subject}.*" if self.class_subjects else self.subject
        return f"nats://{urlsplit(self.servers[0]).netloc}/{subject}"

    def sink(self) -> Sink:
        """The sink itself; raises UnsupportedError."""
        try:
            from ocsf_nft.delivery.sinks.nats import Nats  # noqa: PLC0415 - only where configured
            from ocsf_nft.delivery.sinks.nats_login import Login  # noqa: PLC0415 - the same
        except ImportError as error:
            raise UnsupportedError(
                "a sink of type nats needs the extra ocsf-nft[nats]: install it"
            ) from error
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
