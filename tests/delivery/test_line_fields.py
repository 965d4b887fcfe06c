from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.line_fields import LineFields, free_spans
from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct
from ocsf_nft.delivery.sinks import json_access
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.lean import lean_line
from ocsf_nft.ocsf.model import Model, children
from ocsf_nft.ocsf.safe_text import encodable
from ocsf_nft.ocsf.versions import VERSIONS
from tests.delivery import sample_events as samples
from tests.hostile_events import EVENTS
from tests.strategies import HOSTILE_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.delivery.parquet_columns import Column

INTEGERS: Final = ("class_uid", "type_uid", "time", "severity_id", "count")
TEXTS: Final = ("class_name", "message", "severity")


def _assert_as_parsed(line: bytes) -> None:
    fields, event = LineFields(line), orjson.loads(line)
    for name in INTEGERS:
        assert fields.integer(name) == json_access.integer(event, name)
    for name in TEXTS:
        assert fields.text(name) == json_access.text(event, name)
    assert fields.milliseconds("time") == json_access.milliseconds(event, "time")
    assert fields.hostname() == json_access.text(event, "device", "hostname")
    assert fields.unmapped_text("sandbox") == json_access.text(event, "unmapped", "sandbox")


@pytest.mark.parametrize("version", VERSIONS)
def test_fields_of_every_event_are_those_of_the_parsed_event(version: str) -> None:
    for message in samples.messages(version):
        _assert_as_parsed(message.line)
        _assert_as_parsed(lean_line(message.line))


@given(EVENTS)
def test_fields_of_a_hostile_event_are_those_of_the_parsed_event(event: dict[str, Any]) -> None:
    line = json.dumps(event).encode()
    if json_access.decoded(line) is not None:  # no line of ours has a lone surrogate
        _assert_as_parsed(line)
        _assert_as_parsed(orjson.dumps(orjson.loads(line)))


#: Texts that have the form of the attributes that are searched for.
_FORGED: Final = st.sampled_from(
    ["time", "x", 'x","time":1,"', ',"device":{"hostname":"evil"}',
     ',"unmapped":{"sandbox":"evil"}', "},", '"', "\\", '\\"', ',"metadata":{', "{", "["]
)  # fmt: skip
_FREE: Final = st.dictionaries(
    st.sampled_from(["a", *INTEGERS, "device", "unmapped", "metadata", "sandbox", "data"])
    | _FORGED,
    st.sampled_from([1, -5, 1.0, True, None, "", {"hostname": "evil"}, {"sandbox": "evil"}])
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | _FORGED
    | HOSTILE_TEXT.map(encodable),
    max_size=4,
)
_VALUES: Final = st.sampled_from(
    [1, -5, 1.0, 0, True, None, "7", "", {}, [], [3], {"hostname": "h"}, {"sandbox": "s"}]
)
#: Attributes in any order, with values of any type; only two of them have content of any form.
_LINES: Final = st.lists(
    st.sampled_from([*INTEGERS, *TEXTS, "device", "metadata", "src_endpoint"]).flatmap(
        lambda name: st.tuples(st.just(name), _VALUES | _FORGED | st.integers(-9, 9))
    )
    | st.tuples(st.just("unmapped"), _VALUES | _FREE)
    | st.tuples(
        st.just("enrichments"), st.lists(st.fixed_dictionaries({"name": _FORGED, "data": _FREE}))
    ),
    max_size=12,
    unique_by=lambda pair: pair[0],
).map(dict)


@given(_LINES)
@example({"time": 1, "unmapped": {"device": {"hostname": "evil"}}})
@example(
    {"time": 1, "unmapped": {"x": 1, "device": {"hostname": "evil"}}, "device": {"hostname": "h"}}
)
@example({"enrichments": [{"name": "n", "data": {"x": 1, "unmapped": {"sandbox": "evil"}}}]})
@example({"enrichments": [{"data": {"x": 1, "unmapped": {"sandbox": "evil"}, "metadata": {}}}]})
@example(
    {"enrichments": [{"a": 1, "data": {"x": 1, "unmapped": {"sandbox": "e"}, "metadata": {}}}]}
)
@example({"unmapped": {"x": 1, "device": {"hostname": "evil"}}})
@example({"src_endpoint": {}, "time": 5})
@example({"message": 'x","time":5,"', "time": 6})
def test_fields_of_any_object_are_those_of_the_parsed_object(event: dict[str, Any]) -> None:
    _assert_as_parsed(orjson.dumps(event))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"5", b"[]", b'"x"', b'[{"time":1}]', b'{"time" : 1}', b'{"time":01}',
        b'{"time":99999999999999999999}', b'{"time":1.5}', b'{"time":-0}',
    ],
)  # fmt: skip
def test_line_that_is_no_object_in_the_usual_form_has_the_parsed_fields(line: bytes) -> None:
    fields, event = LineFields(line), json_access.decoded(line)
    assert fields.integer("time") == json_access.integer(event, "time")
    assert fields.text("class_name") == fields.hostname() == fields.unmapped_text("sandbox") == ""


def _free_values(event: Any) -> list[Any]:
    enrichments = event.get("enrichments", ())
    free = [each["data"] for each in enrichments if "data" in each]
    return [*free, event["unmapped"]] if "unmapped" in event else free


@pytest.mark.parametrize("version", VERSIONS)
def test_free_values_of_every_event_are_found_without_a_parse(version: str) -> None:
    for message in samples.messages(version):
        spans = free_spans(message.line)
        assert spans is not None
        found = [orjson.loads(message.line[start:end]) for start, end in spans]
        assert found == _free_values(message.event())


@given(_LINES)
@example({"unmapped": {"x": 1, "data": {}}, "metadata": {}})
@example({"enrichments": [{"data": {"data": {"unmapped": {}}}}]})
@example({"enrichments": [{"data": {"x": '{"'}}], "unmapped": {"x": "}"}, "metadata": {"data": 1}})
def test_free_values_of_any_object_are_found_or_unknown(event: dict[str, Any]) -> None:
    line = orjson.dumps(event)
    spans = free_spans(line)
    found = [json_access.decoded(line[start:end]) for start, end in spans or ()]
    if spans is not None and None not in found and list(event)[-1:] == ["metadata"]:
        assert found == _free_values(event)


def _inner_models(model: type[Model]) -> set[type[Model]]:
    inner: set[type[Model]] = set(children(model).values())
    return inner.union(*map(_inner_models, inner - {model}))


@pytest.mark.parametrize("name", ["device", "unmapped", "metadata"])
def test_attribute_that_is_searched_for_is_only_of_events(name: str) -> None:
    for model in CLASSES.values():
        assert name in model.model_fields
        for inner in _inner_models(model):
            assert name not in inner.model_fields


def _free_paths(column: Column, path: str = "") -> Iterator[str]:
    """Yield the paths of the columns for JSON of any form."""
    if isinstance(column, Struct):
        for name, inner in column.columns.items():
            assert name != "data" or inner is Scalar.JSON
            yield from _free_paths(inner, f"{path}.{name}")
    elif isinstance(column, ListOf):
        yield from _free_paths(column.item, path)
    elif column is Scalar.JSON:
        yield path


@pytest.mark.parametrize("version", VERSIONS)
def test_only_two_attributes_have_any_content(version: str) -> None:
    for struct in columns(version).values():
        assert set(_free_paths(struct)) <= {".enrichments.data", ".unmapped"}
