"""TLS settings for connections to receivers of events."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.errors import DeliveryError, reason_of

if TYPE_CHECKING:
    from pathlib import Path


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


def _no_password() -> str:
    raise ValueError("the key has a password: give a key without one, readable by its owner alone")
