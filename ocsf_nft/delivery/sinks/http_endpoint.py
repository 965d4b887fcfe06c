"""Whom a sink that speaks HTTP talks to, and with what rights."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.delivery.secrets import Secret
    from ocsf_nft.delivery.tls import Tls


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the header ``Authorization`` is made of (RFC 9110, 11.6.2).

    ``secret`` is a token, or the password of ``user`` for the scheme Basic (RFC 7617, 2).
    """

    scheme: Literal["Basic", "Bearer", "ApiKey", "Splunk"]
    secret: Secret
    user: str = ""

    def header(self, secret: str) -> str:
        """The header's value, given what the secret is now."""
        if self.scheme == "Basic":
            secret = base64.b64encode(f"{self.user}:{secret}".encode()).decode()
        return f"{self.scheme} {secret}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A server, by the ``url`` that all of its paths begin with.

    ``headers`` are sent with every request. ``tls`` is for a URL of https, None for the system's
    authorities. A ``proxy`` is used only where one is given, whatever the environment says.
    ``is_compressed`` sends gzip.
    """

    url: str
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    credentials: Credentials | None = None
    tls: Tls | None = None
    proxy: str | None = None
    is_compressed: bool = True

    @property
    def name(self) -> str:
        """The URL for a person: without its query, in which there may be a token."""
        return urlsplit(self.url)._replace(query="").geturl()

    @property
    def is_https(self) -> bool:
        """Whether it is spoken to over TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def next_hop(self) -> tuple[str, int]:
        """Whom to connect to: host and port of the proxy, or of the receiver itself."""
        parts = urlsplit(self.proxy or self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
