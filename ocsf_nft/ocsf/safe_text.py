"""Escaping of hostile text for JSON, terminals and other programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.record import Detail

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: Invisible characters that Unicode calls printable: fillers, joiners, variation selectors, the
#: empty Braille pattern.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_DELETE: Final = b"\x7f"
_INT64_MAX: Final = (1 << 63) - 1
#: Maximum nesting depth of objects. Records need two levels: a packet quoted in a packet.
_DEPTH: Final = 8


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not valid UTF-8: PEP 383
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    r"""Return ``text`` with all invisible characters escaped, as in ``\x1b`` or ``\u202e``.

    Examples of invisible characters are control characters and direction marks. A byte that was not
    valid UTF-8 becomes ``\xNN``, as in the kernel log.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escape(c) for c in text)
    return text if text.isascii() else _INVISIBLE.sub(lambda match: _escape(match[0]), text)


def shown(text: str | None) -> str | None:
    """Return ``text`` as :func:`visible` does; None if it is None."""
    return None if text is None else visible(text)


def printable(json: bytes) -> bytes:
    """Return ``json`` with all unprintable characters written as JSON escapes.

    So the result can't control a terminal, and has no line ends such as U+2028 or U+0085.
    """
    if json.isascii() and _DELETE not in json:
        return json
    text = json.decode()
    if text.isprintable():
        return json
    return "".join(c if c.isprintable() else _json_escape(c) for c in text).encode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def encodable(text: str) -> str:
    """Return ``text`` with lone surrogates escaped, because UTF-8 (and JSON) can't encode them."""
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda match: _escape(match[0]), text)


def byte_size(text: str) -> int:
    """Return the number of bytes that ``text`` had before it was decoded as UTF-8.

    A lone surrogate that replaces an invalid byte (``surrogateescape``) counts as one byte.
    """
    if text.isascii():
        return len(text)
    undecoded = sum("\udc80" <= c <= "\udcff" for c in text)
    # A lone surrogate takes three bytes in this encoding.
    return len(text.encode("utf-8", "surrogatepass")) - 2 * undecoded


def plain(details: Mapping[str, Detail], depth: int = _DEPTH) -> dict[str, Any]:
    """Return ``details`` (values from packet headers, by name) in a form that JSON can encode.

    Invisible characters are escaped. Integers beyond 64 bits, and objects nested deeper than
    ``depth``, become text.
    """
    return {
        key if key.isprintable() else visible(key): _plain(value, depth)
        for key, value in details.items()
    }


def _plain(value: Detail, depth: int) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, int):
        return value if -_INT64_MAX <= value <= _INT64_MAX else str(value)
    return plain(value, depth - 1) if depth > 1 else visible(str(value))
