"""Receiver of an HTTP sink: its URL, credentials, TLS settings and proxy."""

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
    """Credentials for an HTTP receiver: the parts of the header ``Authorization``.

    RFC 9110, 11.6.2 defines the header. ``secret`` is a token, or for the scheme Basic the password
    of ``user`` (RFC 7617, 2).
    """

    scheme: Literal["Basic", "Bearer", "ApiKey", "Splunk"]
    secret: Secret
    user: str = ""

    def header(self, secret: str) -> str:
        """Return the value of the header ``Authorization``.

        The argument ``secret`` is the text that the caller has read from the attribute ``secret``.
        """
        if self.scheme == "Basic":
            secret = base64.b64encode(f"{self.user}:{secret}".encode()).decode()
        return f"{self.scheme} {secret}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """HTTP server that receives events.

    ``url`` is the start of the URL of each request: a sink appends the path of its API. ``headers``
    are sent with every request. ``tls`` has the TLS settings for an https URL; None means to trust
    the system's authorities. Only ``proxy`` selects a proxy; environment variables are ignored. If
    ``is_compressed`` is true, request bodies are compressed with gzip, except small ones.
    """

    url: str
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    credentials: Credentials | None = None
    tls: Tls | None = None
    proxy: str | None = None
    is_compressed: bool = True

    @property
    def name(self) -> str:
        """URL to show to a person, without the query, which may hold a token."""
        return urlsplit(self.url)._replace(query="").geturl()

    @property
    def is_https(self) -> bool:
        """True if the URL uses TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def next_hop(self) -> tuple[str, int]:
        """Host and port to connect to: the proxy's if there is a proxy, else the receiver's."""
        parts = urlsplit(self.proxy or self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
