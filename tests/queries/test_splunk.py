"""Splunk queries of docs/reference/events.md: their attributes and values exist in events."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.queries import siem_events
from tests.queries.page import queries
from tests.queries.paths import fields, values

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERIES: Final = queries("spl")
EVENTS: Final = siem_events.unique_events()

_NAME: Final = r"[A-Za-z_]\w*(?:\{\})?(?:\.\w+(?:\{\})?)*"
_TOKEN: Final = re.compile(
    rf"""(?P<defined>\bAS\s+\w+|\beval\s+\w+(?==)|\b(?:index|span|value)=\S+)
    |"(?P<quoted>[^"]*)"|'(?P<field>{_NAME})'|(?P<called>\w+)\(|(?P<word>{_NAME})
    |(?P<number>\d+)|(?P<other>\S)""",
    re.VERBOSE,
)
_COMMANDS: Final = {"dedup", "eval", "fillnull", "sort", "stats", "table", "timechart", "where"}
_WORDS: Final = {"BY", "IN"}
_CONDITION: Final = re.compile(
    rf"""["']?(?P<field>{_NAME})["']?\s*(?:!?=|\sIN\s)\s*(?P<values>\([^)]*\)|"[^"]*"|\d+)"""
)
#: Names in a query that are not attributes of our events, or that belong to the search.
_NOT_OURS: Final = {"index", "span", "value"}


def _names(query: str) -> Iterator[str]:
    """Yield the attributes that a query names."""
    defined = set(re.findall(r"\bAS\s+(\w+)", query))
    for command in query.split("|"):
        for token in _TOKEN.finditer(command):
            if name := token["field"] or token["word"]:
                if name not in _COMMANDS | _WORDS | defined:
                    yield name
            elif token["quoted"] is not None and command[token.end() :].startswith("="):
                yield token["quoted"]


def _conditions(query: str) -> Iterator[tuple[str, Any]]:
    """Yield each attribute and value that a query compares."""
    for found in _CONDITION.finditer(query):
        if found["field"] not in _NOT_OURS:
            for text, number in re.findall(r'"([^"]*)"|(\d+)', found["values"]):
                yield found["field"], int(number) if number else text


def _path(name: str) -> str:
    return name.replace("{}", "")


@pytest.mark.parametrize("title", QUERIES)
def test_each_name_is_an_attribute_of_our_events(title: str) -> None:
    names = list(_names(QUERIES[title]))
    assert [name for name in names if not fields(_path(name))] == []
    assert len(names) > 2


@pytest.mark.parametrize("title", QUERIES)
def test_array_is_written_with_braces(title: str) -> None:
    for name in _names(QUERIES[title]):
        for match in re.finditer(r"\w+(?:\{\})?(?=\.|\Z)", name):
            holds = fields(_path(name[: match.end()]))
            is_array = any("tuple[" in str(field.annotation) for field in holds)
            assert match[0].endswith("{}") == is_array, name


@pytest.mark.parametrize("title", QUERIES)
def test_each_compared_value_occurs_in_events(title: str) -> None:
    conditions = list(_conditions(QUERIES[title]))
    assert conditions
    for name, value in conditions:
        assert value in values(EVENTS, _path(name)), name


def test_unknown_attribute_is_detected() -> None:
    query = 'index=ocsf severity="Fatal" "observables{}.valu"="x" | stats sum(cnt) AS n BY dst.ip'
    missing = [name for name in _names(query) if not fields(_path(name))]
    assert missing == ["observables{}.valu", "cnt", "dst.ip"]
    assert ("severity", "Fatal") in _conditions(query)
    assert "Fatal" not in values(EVENTS, "severity")
