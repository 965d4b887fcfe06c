"""Mapping of OpenSearch, compared with events of every kind in every version."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.ocsf.versions import STORED, VERSIONS
from tests.delivery import sample_events
from tests.detections import conversion, opensearch_template
from tests.queries.test_opensearch import BODIES, aggregations

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER: Final = conversion.FOLDER / "opensearch"
_TEMPLATE: Final = json.loads((_FOLDER / "index-template.json").read_text())["template"]
_PROPERTIES: Final = _TEMPLATE["mappings"]["properties"]
_JSON_TYPES: Final[dict[str, type]] = {
    "boolean": bool,
    "date": int,
    "flat_object": dict,
    "integer": int,
    "ip": str,
    "keyword": str,
    "long": int,
    "text": str,
}


def _faults(event: dict[str, Any], properties: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the attributes that a strict mapping refuses."""
    for name, value in event.items():
        field = properties.get(name)
        if field is None:
            yield f"{path}{name} has no field"
            continue
        for each in value if isinstance(value, list) else [value]:
            if "properties" in field:
                yield from _faults(each, field["properties"], f"{path}{name}.")
            elif not isinstance(each, _JSON_TYPES[field["type"]]):
                yield f"{path}{name} is no {field['type']}: {each!r}"
            elif field["type"] == "ip":
                ipaddress.ip_address(str(each))


def test_mapping_is_strict_and_has_at_most_200_fields() -> None:
    assert _TEMPLATE["mappings"]["dynamic"] == "strict"
    number = len(list(opensearch_template.fields(_PROPERTIES)))
    assert number <= _TEMPLATE["settings"]["index.mapping.total_fields.limit"] == 200


@pytest.mark.parametrize("version", [VERSIONS[0], STORED])
def test_mapping_accepts_every_event(version: str) -> None:
    found = {
        fault
        for each in sample_events.messages(version)
        for fault in _faults(each.event(), _PROPERTIES)
    }
    assert not found


def test_mapping_has_the_fields_of_the_rules() -> None:
    for rule in conversion.rules().values():
        for path in rule.to_dict()["detection"]["selection"]:
            field: dict[str, Any] = {"properties": _PROPERTIES}
            for name in path.partition("|")[0].split("."):
                field = field["properties"][name]
            assert field["type"] in {"keyword", "integer"}


def test_strict_mapping_refuses_an_unknown_attribute() -> None:
    assert list(_faults({"metadata": {"other": 1}}, _PROPERTIES)) == ["metadata.other has no field"]


def test_pipeline_has_fields_of_events_and_makes_those_of_the_mapping() -> None:
    pipeline = json.loads((_FOLDER / "ingest-pipeline.json").read_text())
    dated, copied = pipeline["processors"]
    assert _PROPERTIES[dated["date"]["field"]]["type"] == "date"
    assert _PROPERTIES[copied["set"]["field"]]["type"] == "keyword"
    assert copied["set"]["value"] == "{{{unmapped.sandbox}}}"
    assert "ctx.unmapped?.sandbox" in copied["set"]["if"]
    named = {
        each.event().get("unmapped", {}).get("sandbox") for each in sample_events.messages(STORED)
    }
    assert {type(each) for each in named} == {str, type(None)}


@pytest.mark.parametrize("title", BODIES)
def test_queries_aggregate_fields_of_the_mapping(title: str) -> None:
    """The README of detections replaces these names. A ``flat_object`` can't be aggregated."""
    for kind, inner, _ in aggregations(BODIES[title]):
        if "field" in inner:
            path = inner["field"].removesuffix(".keyword").replace("unmapped.sandbox", "sandbox")
            field: dict[str, Any] = {"properties": _PROPERTIES}
            for name in path.split("."):
                field = field["properties"][name]
            assert field["type"] not in {"flat_object", "text"}, (kind, path)
            if "missing" in inner and field["type"] == "ip":
                ipaddress.ip_address(inner["missing"])
