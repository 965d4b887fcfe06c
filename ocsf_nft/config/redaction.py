"""Configuration table ``[redaction]``: replacement of secrets by placeholders."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field

from ocsf_nft.config.base_table import Table, checked
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.redaction import Redactor

_MOST_PATTERNS: Final = 32
_MOST_CHARACTERS: Final = 512


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"a pattern has at most {_MOST_CHARACTERS} characters: shorten it")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{quoted(text)} is no regular expression: {error}") from error


class RedactionConfig(Table):
    """Replacement of secrets in command lines and log lines, table ``[redaction]`` in the file.

    A secret becomes ``[redacted:1f2e3d4c5b6a]``. The digits are a keyed hash, so that equal secrets
    can be found. Each of the ``patterns`` is a regular expression of Python for more secrets: its
    first group, or else all that it matches. A pattern is searched in each command line, so it must
    be quick.
    """

    enabled: bool = True
    """Replace secrets by placeholders."""
    patterns: Annotated[
        tuple[Annotated[re.Pattern[str], checked(_pattern)], ...], Field(max_length=_MOST_PATTERNS)
    ] = ()
    """Regular expressions for more secrets, such as "corp-[0-9a-f]{32}"."""

    def redactor(self, key: bytes | None = None) -> Redactor:
        """Return the redactor of this configuration; without ``key``, with a random one."""
        return Redactor(key, self.patterns, is_enabled=self.enabled)
