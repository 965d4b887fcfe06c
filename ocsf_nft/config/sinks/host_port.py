"""Hosts and ports in the configuration of sinks that do not use HTTP."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

_FORM: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:(?P<port>[0-9]+))?")
_PORT_END: Final = 1 << 16


def host_and_port(text: str) -> str:
    """Return ``text`` unchanged if it has the form ``host:port``; else raises UsageError."""
    if _port(text) is None:
        raise UsageError(f"must have a port, as {text}:9092 has")
    return text


def host(text: str) -> str:
    """Return ``text`` unchanged if it is a ``host`` or ``host:port``; else raises UsageError."""
    _port(text)
    return text


def _port(text: str) -> int | None:
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"must be a host and port, such as broker.example:9092 or [2001:db8::7]:9092, "
            f"which {quoted(text)} is not"
        )
    if found["host"].startswith("["):
        try:
            ipaddress.IPv6Address(found["host"][1:-1])
        except ValueError as error:
            raise UsageError(
                f"must have an address of IPv6 in the brackets, which {quoted(text)} has not"
            ) from error
    if found["port"] is None:
        return None
    port = int(found["port"][:6])
    if not 0 < port < _PORT_END:
        raise UsageError("must have a port of 1 to 65535")
    return port
