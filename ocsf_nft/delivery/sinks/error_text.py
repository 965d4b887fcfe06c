"""What goes wrong with a receiver, for a person: in our words, or in its own, which are hostile."""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What OpenSSL calls it when a server has no use for a client without a certificate.
_ASKS_FOR_OURS: Final = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
_LENGTH: Final = 200
_WHITE_SPACE: Final = re.compile(r"\s+")


def cause(error: BaseException, hidden: Iterable[str] = ()) -> str:
    """Why something failed, without the ``hidden``: our secrets, which a receiver may repeat."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not to be trusted ({printable(error.verify_message)}): "
            "name its authority in tls.ca, and it as its certificate does"
        )
    if isinstance(error, ssl.SSLError):
        if error.reason == _ASKS_FOR_OURS:
            return "it asks for a certificate of ours: give tls.certificate and tls.key"
        return f"TLS failed ({printable(error.reason)})"
    if isinstance(error, TimeoutError) and error.errno is None:
        return "it does not answer in time"
    if isinstance(error, socket.gaierror):
        return printable(error.strerror)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return printable(error, hidden) or type(error).__name__


def printable(text: object, hidden: Iterable[str] = ()) -> str:
    """What somebody says, on one line and short, without the ``hidden``."""
    said = str(text)
    for secret in hidden:
        # A library may have put it into small letters.
        said = re.sub(re.escape(secret), "***", said, flags=re.IGNORECASE)
    said = _WHITE_SPACE.sub(" ", said[: _LENGTH * 4]).strip()
    return "".join(c if c.isprintable() else "?" for c in said[:_LENGTH])
