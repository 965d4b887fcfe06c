"""IP addresses as they are on the wire, and as text: tens of thousands a second of them."""

from __future__ import annotations

import ipaddress
import socket


def packed(text: str | None) -> bytes | None:
    """An address in network bytes; None for what is none (a scoped one is none on the wire)."""
    if text is None:
        return None
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # a ValueError where it has a NUL or a lone surrogate
        return None


def text_of(packed: bytes) -> str:
    """An address of four or sixteen bytes, dotted or in RFC 5952 form; raises ValueError."""
    text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    # The C library writes the last 32 bits of some IPv6 addresses as if they were one of IPv4.
    is_mixed = "." in text and ":" in text
    return str(ipaddress.IPv6Address(packed)) if is_mixed else text
