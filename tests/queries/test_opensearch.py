"""OpenSearch queries of docs/reference/events.md: their attributes and values exist in events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.queries import siem_events
from tests.queries.page import queries
from tests.queries.paths import fields, values

if TYPE_CHECKING:
    from collections.abc import Iterator

BODIES: Final = {title: json.loads(text) for title, text in queries("json").items()}
EVENTS: Final = siem_events.unique_events()
_KEYWORD: Final = ".keyword"


def _conditions(query: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each field and value that a query compares."""
    ((clause, body),) = query.items()
    if clause == "bool":
        ((part, clauses),) = body.items()
        assert part == "filter"
        for each in clauses:
            yield from _conditions(each)
        return
    ((field, expected),) = body.items()
    for value in {"term": [expected], "terms": expected}[clause]:
        yield field, value


def aggregations(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield kind, body and neighbours of each aggregation."""
    beside = body.get("aggs", {})
    for aggregation in beside.values():
        ((kind, inner),) = ((name, each) for name, each in aggregation.items() if name != "aggs")
        yield kind, inner, beside
        yield from aggregations(aggregation)


def _compared_fields(body: dict[str, Any]) -> Iterator[str]:
    """Yield the fields that a query compares, adds up, or sorts by."""
    if "query" in body:
        yield from (field for field, _ in _conditions(body["query"]))
    for each in body.get("sort", ()):
        yield from each
    for kind, inner, _ in aggregations(body):
        if kind == "top_hits":
            yield from _compared_fields(inner)
        elif kind != "bucket_selector":
            yield inner["field"]


def _shown(body: dict[str, Any]) -> Iterator[str]:
    """Yield the fields that hits are shown with."""
    yield from body.get("_source", ())
    for _, inner, _ in aggregations(body):
        yield from inner.get("_source", ())


def _path(field: str) -> str:
    return field.removesuffix(_KEYWORD)


def _is_text(field: str) -> bool:
    held = values(EVENTS, _path(field))
    assert held
    return all(isinstance(value, str) for value in held)


@pytest.mark.parametrize("title", BODIES)
def test_each_field_is_an_attribute_of_our_events(title: str) -> None:
    body = BODIES[title]
    assert body.keys() <= {"size", "query", "aggs", "sort", "_source"}
    named = [*_compared_fields(body), *_shown(body)]
    assert len(named) > 1
    assert [field for field in named if not fields(_path(field))] == []


@pytest.mark.parametrize("title", BODIES)
def test_text_is_compared_by_its_keyword_and_a_number_by_itself(title: str) -> None:
    looked_up = _compared_fields(BODIES[title])
    assert [field for field in looked_up if field.endswith(_KEYWORD) != _is_text(field)] == []
    assert not any(field.endswith(_KEYWORD) for field in _shown(BODIES[title]))


@pytest.mark.parametrize("title", BODIES)
def test_each_compared_value_occurs_in_events(title: str) -> None:
    for field, value in _conditions(BODIES[title]["query"]):
        assert value in values(EVENTS, _path(field)), field


@pytest.mark.parametrize("title", BODIES)
def test_aggregation_refers_to_existing_ones(title: str) -> None:
    body = BODIES[title]
    for kind, inner, beside in aggregations(body):
        if kind == "bucket_selector":
            assert set(inner["buckets_path"].values()) <= beside.keys()
        for order in inner.get("order", ()):
            below = [each["aggs"] for each in beside.values() if inner in each.values()]
            assert any(order in names for names in below)


@pytest.mark.parametrize("title", BODIES)
def test_query_that_shows_events_has_a_number_of_them(title: str) -> None:
    """The default is ten."""
    body = BODIES[title]
    assert body["size"] == 0 or "aggs" not in body


@pytest.mark.parametrize("title", BODIES)
def test_terms_leave_no_event_out(title: str) -> None:
    """An event without the field is in no group, if the query names no value for it."""
    body = BODIES[title]
    conditions: dict[str, set[Any]] = {}
    for field, value in _conditions(body["query"]):
        conditions.setdefault(_path(field), set()).add(value)
    found = [
        event
        for event in EVENTS
        if all(values([event], path) & expected for path, expected in conditions.items())
    ]
    assert found
    for kind, inner, _ in aggregations(body):
        if kind == "terms" and "missing" not in inner:
            assert all(values([event], _path(inner["field"])) for event in found), inner


def test_fences_of_hosts_with_equal_sandboxes_are_apart() -> None:
    grouped = [
        inner["field"]
        for kind, inner, _ in aggregations(BODIES["Latest state of each fence"])
        if kind == "terms"
    ]
    assert grouped == ["device.hostname.keyword", "unmapped.sandbox.keyword"]
