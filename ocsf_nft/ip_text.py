"""Fast conversion of IP addresses between network bytes and text."""

from __future__ import annotations

import ipaddress
import socket


def packed(text: str | None) -> bytes | None:
    """Return an IP address as 4 or 16 bytes in network order; None if ``text`` is no address.

    Also return None for an address with a scope (``fe80::1%eth0``).
    """
    if text is None:
        return None
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate
        return None


def text_of(packed: bytes) -> str:
    """Return an IP address of 4 or 16 bytes as text, such as ``192.0.2.1`` or ``2001:db8::1``.

    IPv6 addresses have the form of RFC 5952. Raises ValueError for any other number of bytes.
    """
    text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    # The C library writes the last 32 bits of some IPv6 addresses in the form of IPv4.
    is_mixed = "." in text and ":" in text
    return str(ipaddress.IPv6Address(packed)) if is_mixed else text
