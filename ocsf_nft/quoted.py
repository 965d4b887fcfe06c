"""Quotation of values in sentences for people."""

from __future__ import annotations


def quoted(text: str) -> str:
    r"""Return a text in double quotes, with its unprintable characters escaped, as in ``"a\nb"``.

    So the reader sees where a value begins and ends, even if it is empty or has spaces or line
    ends.
    """
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
