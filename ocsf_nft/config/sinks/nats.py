"""Configuration of a sink of type ``nats``."""

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
    """Return a NATS server's URL unchanged if it has only a scheme, a host and a port.

    Raises UsageError otherwise, for example if it has a password.
    """
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
    """NATS JetStream stream, selected by its ``subject``.

    ``servers`` are URLs, nats:// or tls://. One reachable server is enough; other servers of its
    cluster are not used. With ``class_subjects``, the event's class is the last token of the
    subject: ``ocsf.network_activity``. The sink creates no stream. A stream must have the subject
    (``nats stream add ocsf --subjects 'ocsf.>'``); if ``stream`` is given, it must be that one. The
    event's ``metadata.uid`` is the header ``Nats-Msg-Id``, so the stream stores an event that is
    sent twice only once. Choose a duplicate window of the stream (``--dupe-window``) that is
    longer than the longest time without an answer of the server. An event larger than the server's
    ``max_payload`` or the stream's ``max_msg_size`` becomes a dead letter. If the stream is full
    (``--discard new``), the sink waits.

    Credentials are none, a ``token``, ``user`` and ``password``, an ``nkey`` (a user's seed), or a
    file of ``credentials``, as nsc creates it. With a tls:// URL or ``tls``, nothing is sent in
    clear text, whatever the server requires. With neither, the server decides. ``tls_first`` is for
    a server with ``handshake_first``.
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
        """Return a URL that names the first server and the subject, as the sink's default name."""
        subject = f"{self.subject}.*" if self.class_subjects else self.subject
        return f"nats://{urlsplit(self.servers[0]).netloc}/{subject}"

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra for NATS is not installed."""
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
