"""Causes of delivery failures, as text for people.

Text from a receiver of events is untrusted: it is shortened and made printable.
"""

from __future__ import annotations

import os
import re
import ssl
from typing import TYPE_CHECKING, Final

from ocsf_nft import redaction
from ocsf_nft.errors import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable

#: OpenSSL's reason if a server requires a client certificate and got none.
_CERTIFICATE_REQUIRED: Final = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
#: Maximum length of a text in characters.
_LENGTH: Final = 200
_WHITE_SPACE: Final = re.compile(r"\s+")


def cause(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return the cause of a delivery error as one line, such as "it does not answer in time".

    "It" is the receiver of events. ``secrets`` are texts to mask in the line.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({printable(error.verify_message)}): "
            "give its authority in tls.ca, and use the host name that is in its certificate"
        )
    if isinstance(error, ssl.SSLError):
        if error.reason == _CERTIFICATE_REQUIRED:
            return "it requires a client certificate: give tls.certificate and tls.key"
        return f"TLS failed ({printable(error.reason)})"
    if isinstance(error, TimeoutError) and error.errno is None:
        return "it does not answer in time"
    # asyncio's own text is for programmers. A negative number is an error of the name lookup.
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    # The receiver's error message may contain secrets.
    return printable(reason_of(error), secrets) or type(error).__name__


def printable(text: object, secrets: Iterable[str] = ()) -> str:
    """Return an untrusted text as one printable line of at most 200 characters.

    Each of the ``secrets`` is replaced by ``***``; upper and lower case count as equal. Other texts
    with the form of a secret are redacted.
    """
    line = str(text)
    for secret in secrets:
        # A library may have changed it to lower case.
        line = re.sub(re.escape(secret), "***", line, flags=re.IGNORECASE)
    line = redaction.current().text(line[: _LENGTH * 4])
    line = _WHITE_SPACE.sub(" ", line).strip()
    return "".join(c if c.isprintable() else "?" for c in line[:_LENGTH])
