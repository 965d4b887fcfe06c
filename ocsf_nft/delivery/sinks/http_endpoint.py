"""Settings for requests to an HTTP server that receives events: URL, credentials, TLS, proxy."""

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
    """Credentials for an HTTP server, for the header ``Authorization`` (RFC 9110, 11.6.2)."""

    #: First word of the header's value.
    scheme: Literal["Basic", "Bearer", "ApiKey", "Splunk"]
    #: Location of a token. For Basic, location of the password of ``user`` (RFC 7617, 2).
    secret: Secret
    user: str = ""

    def header(self, secret: str) -> str:
        """Return the value of the header ``Authorization``, for example ``Bearer TOKEN``.

        ``secret`` is the text of the token or password, which the caller has read.
        """
        if self.scheme == "Basic":
            secret = base64.b64encode(f"{self.user}:{secret}".encode()).decode()
        return f"{self.scheme} {secret}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Settings for requests to an HTTP server that receives events."""

    #: A sink may append a path.
    url: str
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    credentials: Credentials | None = None
    #: None: the system's certificate authorities are trusted.
    tls: Tls | None = None
    #: URL of a proxy. None: no proxy is used, even if an environment variable names one.
    proxy: str | None = None
    #: Request bodies are compressed with gzip, except small ones.
    is_compressed: bool = True

    @property
    def name(self) -> str:
        """Return the receiver's name to show in messages: its URL without the query.

        A query may contain a token.
        """
        return urlsplit(self.url)._replace(query="").geturl()

    @property
    def is_https(self) -> bool:
        """Return true if the URL uses TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def next_hop(self) -> tuple[str, int]:
        """Return host and port to connect to: the proxy's if there is one, else the receiver's."""
        parts = urlsplit(self.proxy or self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
