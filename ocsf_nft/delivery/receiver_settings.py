"""Settings of connections to receivers of events: secrets, TLS and HTTP.

The configuration has only the location of a secret, such as the path of a file.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from ocsf_nft.errors import DeliveryError, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Secret:
    """Location of a secret, such as a password or a token.

    If ``kind`` is ``file``, ``location`` is a path. If ``kind`` is ``environment``, ``location`` is
    the name of an environment variable. If ``kind`` is ``credential``, ``location`` is the name in
    LoadCredential= of the systemd unit (systemd.exec(5)).
    """

    kind: Literal["file", "environment", "credential"]
    location: str

    def read(self) -> str:
        """Read and return the secret, without white space at its end.

        Raises DeliveryError if the secret is missing, unreadable, empty, or more than one line. The
        error's text does not contain the secret.
        """
        # Not cached: the secret may have been renewed.
        if self.kind == "environment":
            found = os.environ.get(self.location)
            if found is None:
                raise DeliveryError(
                    f"the environment has no {self.location}, which a secret is read from: set it"
                )
        else:
            found = _content(self._path())
        if not (secret := found.rstrip()):
            raise DeliveryError(f"the secret in {self.kind} {self.location} is empty")
        if any(character in secret for character in "\r\n\0"):
            raise DeliveryError(f"the secret in {self.kind} {self.location} is more than one line")
        return secret

    def _path(self) -> Path:
        if self.kind == "file":
            return Path(self.location)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise DeliveryError(
                f"systemd passed no credential {self.location}: give the unit LoadCredential="
            )
        return Path(folder, self.location)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS settings for a receiver of events; the receiver's certificate is always verified."""

    #: Certificates to trust, in place of the system's. If the receiver's certificate is
    #: self-signed, this file must contain it.
    ca: Path | None = None
    #: Our own certificate, for a receiver that requests a client certificate (mTLS).
    certificate: Path | None = None
    #: Key of our own certificate.
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a connection.

        Raises DeliveryError if a certificate file or the key file can't be read or is invalid.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                # Without it, OpenSSL itself would request a password on the terminal.
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(str(each) for each in (self.ca, self.certificate, self.key) if each)
            raise DeliveryError(f"TLS can't use {files}: {reason_of(error)}") from error
        return context


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


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DeliveryError(f"the secret in {path} can't be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise DeliveryError(
            f"the secret in {path} has more than {_MAX_BYTES} bytes: name the file of the secret"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DeliveryError(f"the secret in {path} is not text in UTF-8") from error


def _no_password() -> str:
    raise ValueError("the key has a password: give a key without one, readable by its owner alone")
