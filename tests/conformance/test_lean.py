"""Conformance and size of the lean form of events."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchema, OcsfJsonSchemaEmbedded, get_ocsf_schema

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.lean import DROPPED, lean, lean_line
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.oneline import plain, shorthand
from ocsf_nft.ocsf.versions import STORED, at_version
from ocsf_nft.validation import EventValidator
from tests.conformance.corpus import CONTAINED, NOW_NS
from tests.conformance.lean_sizes import saved
from tests.conformance.shapes import of_each_shape
from tests.conformance.test_conformance import attempt_events, fence_events, service_events
from tests.detections.conversion import rules
from tests.detections.samples import events
from tests.detections.test_detections import is_selected
from tests.published_versions import PUBLISHED
from tests.strategies import records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.record import Record

RULES: Final = rules()
_GOLDEN: Final = Path(__file__).parents[1] / "golden/events"
#: Our validator reports each missing caption.
_CAPTION: Final = ("warning", "is missing: ")


@pytest.fixture(scope="module")
def full_events() -> dict[str, Any]:
    found = (*attempt_events(CONTAINED), *fence_events(CONTAINED), *service_events(CONTAINED))
    events = {f"{name} ({n})": json.loads(each.to_json()) for n, (name, each) in enumerate(found)}
    return of_each_shape(events)


def _lean_events(full: dict[str, Any], version: str) -> Iterator[tuple[str, Any, Any]]:
    for name, event in full.items():
        converted = at_version(copy.deepcopy(event), version)
        yield name, converted, lean(copy.deepcopy(converted))


def _faults(event: Any, version: str) -> list[str]:
    """Return the faults of an event, without those that a caption is missing."""
    texts = map(str, EventValidator(version).faults(event))
    return [text for text in texts if not all(part in text for part in _CAPTION)]


@pytest.mark.parametrize("version", PUBLISHED)
def test_lean_events_of_each_shape_have_no_fault(version: str, full_events: dict[str, Any]) -> None:
    embedded = OcsfJsonSchemaEmbedded(OcsfJsonSchema(get_ocsf_schema(version)))
    names = {one["uid"]: name for name, one in get_ocsf_schema(version)["classes"].items()}

    @functools.cache
    def validator(uid: int, profiles: tuple[str, ...]) -> jsonschema.Draft202012Validator:
        schema = embedded.get_class_schema(names[uid], list(profiles))
        return jsonschema.Draft202012Validator(schema)

    faults = {}
    for name, full, small in _lean_events(full_events, version):
        schema = validator(small["class_uid"], tuple(small["metadata"].get("profiles", ())))
        found = [error.message for error in schema.iter_errors(small)] + _faults(small, version)
        if found:
            faults[name] = found
        assert small["metadata"]["uid"] == full["metadata"]["uid"]
        assert lean(copy.deepcopy(small)) == small
        assert json.loads(lean_line(orjson.dumps(full))) == small
        assert shorthand(small), name
    assert not faults
    assert {event["class_uid"] for event in full_events.values()} == CLASSES.keys()


def test_lean_event_has_only_values_of_the_full_event(full_events: dict[str, Any]) -> None:
    for name, full, small in _lean_events(full_events, STORED):
        known = set(map(str, _leaves(full)))
        new = {str(value) for value in _leaves(small)} - known
        # The path of a program is an attribute of the process, and no more of its file.
        assert all(value.endswith("process.path") for value in new), (name, new)


def test_lean_event_has_the_sender_the_destination_and_the_counts() -> None:
    full = json.loads((_GOLDEN / "a-program-that-is-known.json").read_text("utf-8"))
    small = lean(copy.deepcopy(full))
    process, was = small["actor"]["process"], full["actor"]["process"]
    same = ("name", "pid", "path", "cmd_line", "created_time", "ancestry", "container")
    assert {name: process[name] for name in same} == {name: was[name] for name in same}
    assert process["file"]["hashes"][0]["value"] == was["file"]["hashes"][0]["value"]
    assert small["actor"]["user"] == full["actor"]["user"]
    for name in ("message", "count", "time", "start_time", "end_time", "severity_id", "traffic"):
        assert small[name] == full[name]
    for end in ("src_endpoint", "dst_endpoint"):
        assert small[end]["ip"] == full[end]["ip"]
        assert small[end]["port"] == full[end]["port"]
    assert small["unmapped"]["sandbox"] == "sb1"
    assert "packet" not in small["unmapped"]
    assert not {"severity", "status", "raw_data", "class_name", "activity_name"} & small.keys()
    assert plain(shorthand(small)).startswith(plain(shorthand(full)).partition("[egress]")[0])


def test_lean_event_keeps_a_caption_of_its_own() -> None:
    full = json.loads((_GOLDEN / "a-collection-gap.json").read_text("utf-8"))
    assert full["activity_id"] == 99
    assert lean(copy.deepcopy(full))["activity_name"] == "Collection Gap"


def test_lean_event_names_the_process_of_each_evidence_once() -> None:
    full = json.loads((_GOLDEN / "ssh-by-several-programs.json").read_text("utf-8"))
    (evidence,) = lean(copy.deepcopy(full))["evidences"]
    assert evidence.keys() == {"src_endpoint", "dst_endpoint", "connection_info"}
    other = copy.deepcopy(full)
    other["evidences"][0]["process"]["pid"] += 1
    (evidence,) = lean(other)["evidences"]
    assert evidence["process"]["pid"] == full["actor"]["process"]["pid"] + 1


def test_lean_observables_refer_to_attributes(full_events: dict[str, Any]) -> None:
    for version in PUBLISHED:
        for name, _, small in _lean_events(full_events, version):
            for each in small.get("observables", ()):
                path = each["name"].replace("[", ".").replace("]", "").split(".")
                assert _value(small, path) == each["value"], (version, name, each)


def test_lean_event_has_the_names_in_dns_queries_as_observables() -> None:
    full = json.loads((_GOLDEN / "a-name-lookup-with-its-name.json").read_text("utf-8"))
    (found,) = [each for each in lean(full)["observables"] if each["type_id"] == 1]
    assert found["name"] == "enrichments[0].value"


def test_lean_findings_are_forty_percent_smaller() -> None:
    assert saved()["golden, 2004"] >= 0.4


@pytest.mark.parametrize("name", sorted(RULES))
def test_detection_rule_selects_the_same_lean_events(name: str) -> None:
    for event in events().values():
        small = lean(copy.deepcopy(event))
        assert is_selected(small, RULES[name]) == is_selected(event, RULES[name])


def test_dropped_attributes_exist(full_events: dict[str, Any]) -> None:
    """A renamed attribute must not stay in the lean form unnoticed."""
    paths = {path for event in full_events.values() for path in _paths(event, ())}
    for path, names in DROPPED.items():
        assert all((*path, name) in paths for name in names), path


@settings(max_examples=100)
@given(record=records(), version=st.sampled_from(PUBLISHED))
def test_lean_event_of_any_record_has_no_fault(record: Record, version: str) -> None:
    event = Mapper(CONTAINED).network_activity(Attempt.of(record), processed_ns=NOW_NS)
    small = lean(at_version(json.loads(event.to_json()), version))
    assert _faults(small, version) == []


def test_lean_events_are_forty_percent_smaller() -> None:
    found = saved()
    assert found["all"] >= 0.4
    assert found["golden"] >= 0.4


def _value(found: Any, path: Sequence[str]) -> Any:
    for part in path:
        found = found[int(part)] if isinstance(found, list) else found[part]
    return str(found)


def _leaves(found: Any) -> Iterator[Any]:
    if isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from _leaves(each)
    else:
        yield found


def _paths(found: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(found, dict):
        for name, value in found.items():
            yield (*path, name)
            yield from _paths(value, (*path, name))
    elif isinstance(found, list):
        for each in found:
            yield from _paths(each, (*path, "*"))
