"""Configuration of a sink of type ``syslog``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SinkTable, TlsTable
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

#: A name, or an IPv4 or IPv6 address; an IPv6 address may have a link.
_HOST: Final = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,254}")
#: RFC 5426, 3.3, and RFC 5425, 4.1; syslog by TCP has no port of its own (RFC 6587, 3.1).
_PORTS: Final = {"udp": 514, "tcp": 514, "tls": 6514}
#: A datagram's payload by IPv4 (RFC 5426, 3.2).
_DATAGRAM_BYTES: Final = 65_535 - 20 - 8


def _host(text: str) -> str:
    if "@" in text:
        raise UsageError("must not hold a user or password: syslog has none")
    if not _HOST.fullmatch(text):
        raise UsageError(
            "must be a host's name or address, without brackets or a port, which "
            f"{quoted(text)} is not"
        )
    return text


class SyslogSink(SinkTable):
    """Syslog messages (RFC 5424) to ``host`` and ``port``, each with the JSON of an event as text.

    ``transport`` is ``tls`` (port 6514 by default), ``tcp`` or ``udp`` (both 514). The table
    ``tls`` has the keys ``ca``, ``certificate`` and ``key``. It is only for the transport ``tls``.
    The receiver's certificate must be valid for ``host``. With ``tls`` and ``tcp``, each message
    begins with its length (octet counting). rsyslog, syslog-ng and Vector accept this format by
    default.

    If an event's message is longer than ``max_bytes``, the event becomes a dead letter. Receivers
    truncate longer messages, and truncated JSON is invalid. The default, 8096, is the limit of
    rsyslog. An event about a process with long arguments can have 40,000 bytes, and a finding about
    a scan by many processes 65,000, or 200,000 if their arguments are long. If your rsyslog has a
    higher limit, increase ``max_bytes`` too. For example, set ``max_bytes`` to 256000 if rsyslog
    has ``global(maxMessageSize="256k")``.

    Syslog has no acknowledgement. With TCP and TLS, an event counts as delivered when the
    receiver's kernel has received it. If the receiver crashes, the events that it had not read or
    stored are dropped. With UDP, an event is dropped without an error if the network or the
    receiver drops its datagram.

    With every transport, the first delivery to a newly connected receiver waits half a second for
    an error. This half second is part of ``timeout_seconds``, so ``timeout_seconds`` must be at
    least 1.
    """

    type: Literal["syslog"]
    transport: Literal["udp", "tcp", "tls"]
    """Transport of the messages."""
    host: Annotated[str, checked(_host)]
    """Name or address of the receiver."""
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Port of the receiver; by default 6514 for tls, else 514."""
    tls: TlsTable | None = None
    """TLS settings for the transport tls."""
    # A new connection must last for half a second (delivery/sinks/syslog.py).
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] | None = 30.0
    max_bytes: Annotated[int, Field(ge=480, le=1 << 20)] = 8096
    """Maximum size of a message; a longer event becomes a dead letter."""

    @model_validator(mode="after")
    def _fits_its_transport(self) -> Self:
        if self.tls is not None and self.transport != "tls":
            raise ValueError(f'has tls, and transport {self.transport}: give transport = "tls"')
        if self.transport == "udp" and self.max_bytes > _DATAGRAM_BYTES:
            raise ValueError(f"max_bytes: a datagram has at most {_DATAGRAM_BYTES}")
        return self

    @property
    def _target(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"syslog+{self.transport}://{host}:{self._port}"

    @property
    def _port(self) -> int:
        return self.port or _PORTS[self.transport]

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.syslog import Syslog  # noqa: PLC0415 - only where configured

        return Syslog(
            transport=self.transport,
            host=self.host,
            port=self._port,
            tls=None if self.tls is None else self.tls.tls(),
            max_bytes=self.max_bytes,
        )
