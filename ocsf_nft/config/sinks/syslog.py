"""What a file says of a sink of type ``syslog``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SinkTable, TlsTable
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

#: A name, or an address of IPv4 or IPv6, this with the link that it is of.
_HOST: Final = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,254}")
#: RFC 5426, 3.3, and RFC 5425, 4.1; syslog by TCP has no port of its own (RFC 6587, 3.1).
_PORTS: Final = {"udp": 514, "tcp": 514, "tls": 6514}
#: A datagram's payload by IPv4 (RFC 5426, 3.2).
_DATAGRAM_BYTES: Final = 65_535 - 20 - 8


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise UsageError(
            f"must be a host's name or address, without brackets or a port, which {text!r} is not"
        )
    return text


class SyslogSink(SinkTable):
    """Syslog messages of RFC 5424 to ``host`` and ``port``, each with an event's JSON as its text.

    ``transport`` is ``tls`` (port 6514 by default), ``tcp`` or ``udp`` (both 514). ``tls`` is a
    table for the first: ``ca``, ``certificate`` and ``key``; the receiver's certificate has to have
    the ``host`` in it. Messages begin with their length (octet counting), as rsyslog, syslog-ng and
    Vector understand without being told.

    An event that is longer than ``max_bytes`` as a message is a dead letter: receivers cut what is
    longer than they take, and half an event is no JSON. The default is rsyslog's. Where it is told
    to take more, as by ``global(maxMessageSize="64k")``, give 64000 here: an event with long
    arguments of a process may have 40,000 bytes.

    Syslog has no acknowledgement. By TCP and TLS an event counts as delivered when the receiver's
    system has it, so that one which dies loses what it had not read, or kept. By UDP an event is
    lost without an error if the network or the receiver drops its datagram. ``timeout_seconds`` is
    at least 1: a new connection counts once it has lasted for half a second.
    """

    type: Literal["syslog"]
    transport: Literal["udp", "tcp", "tls"]
    host: Annotated[str, checked(_host)]
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    tls: TlsTable | None = None
    # A new connection has to stay for half a second (delivery/sinks/carriers.py).
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] | None = 30.0
    max_bytes: Annotated[int, Field(ge=480, le=1 << 20)] = 8096

    @model_validator(mode="after")
    def _fits_its_transport(self) -> Self:
        if self.tls is not None and self.transport != "tls":
            raise ValueError(f'has tls, and goes by {self.transport}: give transport = "tls"')
        if self.transport == "udp" and self.max_bytes > _DATAGRAM_BYTES:
            raise ValueError(f"max_bytes: a datagram has at most {_DATAGRAM_BYTES}")
        return self

    @property
    def target(self) -> str:
        """Transport, host and port, as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"syslog+{self.transport}://{host}:{self._port}"

    @property
    def _port(self) -> int:
        return self.port or _PORTS[self.transport]

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.syslog import Syslog  # noqa: PLC0415 - only where configured

        return Syslog(
            transport=self.transport,
            host=self.host,
            port=self._port,
            tls=None if self.tls is None else self.tls.tls(),
            max_bytes=self.max_bytes,
        )
