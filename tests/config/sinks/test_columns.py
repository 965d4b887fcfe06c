"""Parquet columns of a class, compared with the published schema of its attributes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest
from ocsf_json_schema import get_ocsf_schema

from ocsf_nft.attempt import Attempt
from ocsf_nft.config.sinks.columns import _DEPTH, _columns, columns
from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct, row_of
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.model import Model
from ocsf_nft.ocsf.versions import STORED, VERSIONS, at_version
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS
from tests.conformance.incidents import GOING_ON
from tests.delivery import sample_events
from tests.delivery.read_back import event_of
from tests.published_versions import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.delivery.parquet_columns import Column

_TYPES: Final = {
    "boolean_t": Scalar.FLAG,
    "integer_t": Scalar.INT32,
    "json_t": Scalar.JSON,
    "long_t": Scalar.INT64,
    "string_t": Scalar.TEXT,
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_each_column_is_an_attribute_of_its_type_in_the_published_schema(version: str) -> None:
    schema = get_ocsf_schema(version)
    classes = {each["uid"]: each for each in schema["classes"].values()}
    checked = 0
    for uid, struct in columns(version).items():
        if uid not in classes:
            continue
        for path, found, expected in _beside(struct, classes[uid]["attributes"], schema):
            # Counters of the kernel need 64 bits where the schema defines less.
            assert found == expected or (found, expected) == (Scalar.INT64, Scalar.INT32), path
            checked += 1
    assert checked > 300


def _beside(
    struct: Struct, attributes: Any, schema: Any, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, column type and type in the schema: a scalar each, or whether it is a list."""
    for name, column in struct.columns.items():
        attribute = attributes[name]
        yield f"{path}{name}", isinstance(column, ListOf), attribute.get("is_array", False)
        item = column.item if isinstance(column, ListOf) else column
        if isinstance(item, Struct):
            inner = schema["objects"][attribute["object_type"]]["attributes"]
            yield from _beside(item, inner, schema, f"{path}{name}.")
        elif attribute["type"] == "object_t":
            yield f"{path}{name}", item, Scalar.JSON
        else:
            yield f"{path}{name}", item, _TYPES[_primitive(attribute["type"])]


@cache
def _primitive(name: str) -> str:
    """Return the primitive type of a type, from the newest version, which has all types."""
    definition = get_ocsf_schema(STORED)["dictionary"]["types"]["attributes"][name]
    return str(definition.get("type", name))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_attribute_of_an_event_has_a_column(version: str) -> None:
    of_class = columns(version)
    seen = set()
    for message in sample_events.messages(version):
        event = message.event()
        struct = of_class[event["class_uid"]]
        assert event_of(row_of(event, struct), struct) == event
        seen.add(event["class_uid"])
    assert seen == of_class.keys()


def test_attributes_of_a_newer_version_have_columns() -> None:
    agent = ("agent.name", "agent.id", "agent.version", "conversation.id")
    keys = (*agent, "request.model", "provider.name")
    labels = tuple(f"gen_ai.{key}=x" for key in keys)
    mapper = Mapper(replace(CONTEXT, labels=labels))
    finding = mapper.finding(GOING_ON["tcp4, first"], processed_ns=NOW_NS)
    assert finding is not None
    activity = mapper.network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS)
    of_class = columns(VERSIONS[-1])
    for made in (activity, finding):
        event = at_version(json.loads(made.to_json()), VERSIONS[-1])
        struct = of_class[event["class_uid"]]
        assert "ai_agent" in str(event)
        assert event_of(row_of(event, struct), struct) == event
    assert "is_src_dst_assignment_known" not in of_class[sample_events.REFUSED].columns
    assert "initiator_id" not in columns(STORED)[sample_events.REFUSED].columns


def test_attribute_missing_in_a_version_has_no_column() -> None:
    old, new = columns("1.1.0")[sample_events.REFUSED], columns("1.4.0")[sample_events.REFUSED]
    assert "is_alert" not in old.columns
    assert "is_alert" in new.columns
    assert _at(old, "actor", "process", "lineage") == ListOf(Scalar.TEXT)
    assert _at(new, "actor", "process", "lineage") is None


def _at(struct: Struct, *path: str) -> Column | None:
    found: Column | None = struct
    for name in path:
        assert isinstance(found, Struct)
        found = found.columns.get(name)
    return found


class _Nested(Model):
    name: str
    inner: _Nested | None = None
    many: tuple[_Nested, ...] = ()


class _Empty(Model):
    pass


class _Odd(Model):
    empty: _Empty
    either: int | str
    anything: Any
    free: dict[str, Any]


def test_recursive_model_is_json() -> None:
    struct = Struct(_columns(_Nested, STORED, _DEPTH))
    for _ in range(_DEPTH):
        inner, many = struct.columns["inner"], struct.columns["many"]
        assert isinstance(inner, Struct)
        assert many == ListOf(inner)
        struct = inner
    assert struct.columns == {
        "name": Scalar.TEXT,
        "inner": Scalar.JSON,
        "many": ListOf(Scalar.JSON),
    }


def test_attribute_without_a_fixed_type_or_attributes_is_json() -> None:
    assert set(_columns(_Odd, STORED, _DEPTH).values()) == {Scalar.JSON}
