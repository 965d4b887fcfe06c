"""Gating of attributes by version, compared with the published schemas."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from ocsf_json_schema import get_ocsf_schema

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import enums, versions
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.model import children
from ocsf_nft.ocsf.versions import SINCE, STORED, VERSIONS, at_version, line_at
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import CONTAINED, CONTEXT, NOW_NS, RECORDS
from tests.conformance.incidents import GOING_ON
from tests.published_versions import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.model import Model

MAPPER = Mapper(CONTAINED)


def published(version: str) -> Any:
    return get_ocsf_schema(version)


def tables() -> Iterator[tuple[type[Model], str, str]]:
    """Yield each model with kind and name of its table in the schema."""
    latest = published(STORED)
    names = {one["uid"]: name for name, one in latest["classes"].items()}
    waiting: list[tuple[type[Model], str, str]] = [
        (model, "classes", names[uid]) for uid, model in CLASSES.items()
    ]
    seen: set[type[Model]] = set()
    while waiting:
        model, kind, name = waiting.pop()
        if model not in seen:
            seen.add(model)
            yield model, kind, name
            attributes = latest[kind][name]["attributes"]
            waiting += [
                (child, "objects", attributes[field]["object_type"])
                for field, child in children(model).items()
            ]


TABLES = list(tables())


def as_json(event: Event) -> Any:
    return json.loads(event.to_json())


def rendered(event: Event, version: str) -> Any:
    return at_version(as_json(event), version)


@pytest.mark.parametrize("version", PUBLISHED)
def test_attribute_is_gated_from_where_schema_has_it(version: str) -> None:
    wrong = {}
    for model, kind, name in TABLES:
        there = published(version)[kind].get(name, {"attributes": {}})["attributes"]
        since = SINCE.get(model, {})
        ours = {
            field
            for field in model.model_fields
            if not versions.is_before(version, since.get(field, VERSIONS[0]))
        }
        if model.__name__ in {"ProcessEntity", "KeyValue"} and not there:
            continue  # an object with attributes that have their own gates
        if off := ours ^ (set(model.model_fields) & set(there)):
            wrong[model.__name__] = off
    assert wrong == {}
    assert len(TABLES) > 30


@pytest.mark.parametrize("version", PUBLISHED)
def test_an_observable_is_gated_from_where_the_schema_has_its_type(version: str) -> None:
    there = published(version)["objects"]["observable"]["attributes"]["type_id"]["enum"]
    assert {str(int(kind)) for kind in enums.ObservableType} & set(there) == {
        str(int(kind))
        for kind in enums.ObservableType
        if not versions.is_before(version, versions.OBSERVABLES_SINCE.get(kind, VERSIONS[0]))
    }


def test_the_stored_version_is_the_body_itself() -> None:
    event = MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
    assert rendered(event, STORED) == as_json(event)
    assert line_at(event.to_json(), STORED) == event.to_json()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_record_has_one_uid_and_one_count_in_every_version(version: str) -> None:
    for attempt in (*map(Attempt.of, RECORDS.values()), *GOING_ON.values()):
        event = MAPPER.network_activity(attempt, processed_ns=NOW_NS)
        event_then = rendered(event, version)
        assert event_then["metadata"]["uid"] == event.metadata.uid
        assert event_then["metadata"]["correlation_uid"] == event.metadata.correlation_uid
        assert event_then["metadata"]["version"] == version
        assert event_then["count"] == event.count


def test_line_in_a_version_equals_its_event() -> None:
    event = MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
    for version in VERSIONS:
        assert json.loads(line_at(event.to_json(), version)) == rendered(event, version)


def test_oldest_version_requires_both_endpoints() -> None:
    event = Mapper(CONTEXT).network_activity(
        Attempt.of(RECORDS["nothing but a prefix"]), processed_ns=NOW_NS
    )
    assert "dst_endpoint" not in rendered(event, "1.4.0")
    assert rendered(event, "1.3.0")["dst_endpoint"] == {"name": "unknown"}
    no_source = MAPPER.network_activity(
        Attempt.of(RECORDS["nothing but macs"]), processed_ns=NOW_NS
    ).model_copy(update={"src_endpoint": None})
    assert rendered(no_source, "1.1.0")["src_endpoint"] == {"name": "unknown"}
    assert "src_endpoint" not in rendered(no_source, "1.3.0")


@pytest.mark.parametrize(
    ("name", "version", "action"),
    [
        ("foreign, logged", "1.4.0", (3, "Observed")),
        ("foreign, logged", "1.3.0", (0, "Unknown")),
        ("foreign, allowed", "1.1.0", (1, "Allowed")),
        ("tcp4", "1.1.0", (2, "Denied")),
    ],
)
def test_observed_action_is_unknown_in_older_versions(
    name: str, version: str, action: tuple[int, str]
) -> None:
    event = rendered(
        MAPPER.network_activity(Attempt.of(RECORDS[name]), processed_ns=NOW_NS), version
    )
    assert (event["action_id"], event["action"]) == action


def test_packet_of_a_permissive_fence_is_allowed_in_older_versions() -> None:
    event = MAPPER.network_activity(Attempt.of(RECORDS["foreign, logged"]), processed_ns=NOW_NS)
    opened = event.model_copy(
        update={"activity_id": enums.NetworkActivityId.OPEN, "activity_name": "Open"}
    )
    assert rendered(opened, "1.3.0")["action"] == "Allowed"


def test_ancestry_is_a_lineage_of_paths_in_older_versions() -> None:
    event = MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
    assert "lineage" not in rendered(event, "1.4.0")["actor"]["process"]
    then = rendered(event, "1.3.0")["actor"]["process"]
    assert then["lineage"] == ["/opt/agent/bin/agent", "/usr/bin/bash"]
    assert "ancestry" not in then
    assert then["file"]["path"] == "/usr/bin/curl"
    finding = MAPPER.finding(GOING_ON["tcp4, first"], processed_ns=NOW_NS)
    assert finding is not None
    (evidence,) = rendered(finding, "1.1.0")["evidences"]
    assert evidence["process"]["lineage"] == evidence["actor"]["process"]["lineage"]


def test_thread_id_is_tid_before_1_6() -> None:
    event = MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
    assert rendered(event, "1.6.0")["actor"]["process"]["ptid"] == 4243
    then = rendered(event, "1.5.0")["actor"]["process"]
    assert then["tid"] == 4243
    assert "ptid" not in then


def test_related_event_has_a_type_in_older_versions() -> None:
    finding = MAPPER.finding(GOING_ON["tcp4, later"], processed_ns=NOW_NS)
    assert finding is not None
    for each in rendered(finding, "1.1.0")["finding_info"]["related_events"]:
        assert each.keys() == {"uid", "type_uid", "type"}
        assert each["type"] == "Network Activity: Refuse"
    assert all(
        each.keys() == {"uid", "type_uid", "type_name"}
        for each in rendered(finding, "1.3.0")["finding_info"]["related_events"]
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_observables_refer_to_existing_attributes(version: str) -> None:
    event = rendered(
        MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS), version
    )
    for observable in event["observables"]:
        found: Any = event
        for step in re.findall(r"\w+", observable["name"]):
            found = found[int(step)] if step.isdecimal() else found[step]
        assert str(found) == observable["value"]
