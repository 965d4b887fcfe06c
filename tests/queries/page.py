"""Queries of docs/reference/events.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs/reference/events.md"
_QUERY: Final = re.compile(
    r"^\*\*(?P<title>[^*\n]+)\*\*:(?:(?!```).)*?\n\n```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def queries(language: str) -> dict[str, str]:
    """Return the queries in one language, by their titles."""
    page = PAGE.read_text(encoding="utf-8")
    found = [
        (one["title"], one["text"]) for one in _QUERY.finditer(page) if one["language"] == language
    ]
    assert len(found) == page.count(f"```{language}\n"), "each query has a title and a purpose"
    assert len(dict(found)) == len(found)
    return dict(found)
