"""Replacement of secrets in command lines and other texts by placeholders.

A placeholder, such as ``[redacted:1f2e3d4c5b6a]``, has a keyed hash of the secret. So equal secrets
have equal placeholders, and a guess can't be tested without the key.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import TYPE_CHECKING, Final

from ocsf_nft.redaction import forms, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KEY_BYTES: Final = 32
_HASH_DIGITS: Final = 12  # 48 bits
_PLACEHOLDER: Final = re.compile(rf"\[redacted:[0-9a-f]{{{_HASH_DIGITS}}}\]")
_CUT: Final = "…"
#: A text with more secrets is replaced as a whole, so that it takes little time.
_MOST_SECRETS: Final = 64


class Redactor:
    """Replacer of secrets by placeholders with a keyed hash.

    ``patterns`` are additional secrets: the first group of a pattern, or else all that it matches.
    """

    def __init__(
        self,
        key: bytes | None = None,
        patterns: Iterable[re.Pattern[str]] = (),
        *,
        is_enabled: bool = True,
    ) -> None:
        self._key = os.urandom(KEY_BYTES) if key is None else key
        self._patterns = tuple(patterns)
        self._is_enabled = is_enabled

    def with_random_key(self) -> Redactor:
        """Return a redactor of the same secrets for a process that must not know the key."""
        return Redactor(None, self._patterns, is_enabled=self._is_enabled)

    def command_line(self, arguments: Sequence[str], *, is_cut: bool = False) -> str:
        """Return the arguments of a process, with spaces between them and without secrets.

        If ``is_cut``, the end of the last argument is missing, and the result ends with ``…``.
        """
        text = " ".join(arguments)
        if self._may_have_secret(text, is_cut=is_cut):
            found, start = [], 0
            for each in arguments:
                found.append(words.Word(each, start))
                start += len(each) + 1
            text = self._replaced(text, words.spans(found, end=len(text) if is_cut else -1))
        return f"{text}{_CUT}" if is_cut else text

    def text(self, text: str) -> str:
        """Return a text, such as a log line, without secrets."""
        if not self._may_have_secret(text, is_cut=False):
            return text
        return self._replaced(text, words.spans([words.Word(text, 0)]))

    def _may_have_secret(self, text: str, *, is_cut: bool) -> bool:
        if not self._is_enabled:
            return False
        if is_cut or self._patterns or ("://" in text and "@" in text):
            return True
        return forms.may_match(text) or words.may_have_secret(text)

    def _replaced(self, text: str, found: Iterator[tuple[int, int]]) -> str:
        spans = [*islice(found, _MOST_SECRETS), *islice(self._custom(text), _MOST_SECRETS)]
        if len(spans) >= _MOST_SECRETS:
            spans = [(0, len(text))]
        parts: list[str] = []
        done = 0
        for start, end in _merged(spans):
            secret = text[start:end]
            rest, placeholders = _PLACEHOLDER.subn("", secret)
            if placeholders and not any(map(str.isalnum, rest)):
                continue  # it is redacted already
            parts += [text[done:start], self._placeholder(secret)]
            done = end
        return "".join((*parts, text[done:]))

    def _custom(self, text: str) -> Iterator[tuple[int, int]]:
        for pattern in self._patterns:
            for match in pattern.finditer(text):
                yield match.span(1) if pattern.groups and match[1] is not None else match.span()

    def _placeholder(self, secret: str) -> str:
        import hmac  # noqa: PLC0415 - it takes milliseconds, and most texts have no secret

        if len(secret) > 1 and secret[0] == secret[-1] and secret[0] in "\"'":
            secret = secret[1:-1]
        digest = hmac.digest(self._key, secret.encode("utf-8", "backslashreplace"), "sha256")
        return f"[redacted:{digest.hex()[:_HASH_DIGITS]}]"


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans in order; those that overlap are one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif start < end:
            found.append((start, end))
    return found


_current = Redactor()


def configure(redactor: Redactor) -> None:
    """Use ``redactor`` for all texts of this program from now on.

    Until this call, a redactor with a random key is in use. There is one for the whole program, so
    that no code that reads a command line can lack it.
    """
    global _current  # noqa: PLW0603 - see above
    _current = redactor


def current() -> Redactor:
    """Return the redactor of this program."""
    return _current
