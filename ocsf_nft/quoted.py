"""Function that puts a text in double quotes, for messages to people."""

from __future__ import annotations


def quoted(text: str) -> str:
    r"""Return a text in double quotes, with unprintable characters escaped, as in ``"a\nb"``."""
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
