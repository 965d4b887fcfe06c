"""Tests of the check of observables."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ocsf_nft.validation import EventValidator, observables
from tests.validation.events import good

VALIDATOR = EventValidator()
UNKNOWN = "is no attribute of network_activity in 1.8.0"
ABSENT = "is not in the event"
ENRICHMENTS = [
    {"name": "a", "value": "1", "type": "x", "data": {}},
    {"name": "b", "value": "2", "data": {"deep": 1}},
]


def observable(name: Any, value: Any = None, type_id: int = 99, **more: Any) -> dict[str, Any]:
    one = {"name": name, "type_id": type_id, "type": "text", "value": value} | more
    return {key: each for key, each in one.items() if each is not None}


def faults_of(one: dict[str, Any]) -> list[str]:
    event = good(observables=[one], enrichments=ENRICHMENTS)
    return [str(fault) for fault in VALIDATOR.faults(event) if "type: is " not in str(fault)]


@pytest.mark.parametrize(
    ("name", "value", "type_id"),
    [
        ("dst_endpoint.ip", "93.184.216.34", 2),
        ("dst_endpoint.port", "443", 11),
        ("is_alert", "true", 99),
        ("actor.process", None, 25),
        ("dst_endpoint", None, 20),
        ("enrichments.value", "1", 99),
        ("enrichments.value", "2", 99),
        ("enrichments[].value", "2", 99),
        ("enrichments[1].value", "2", 99),
        ("enrichments[1]", None, 99),
        ("enrichments", None, 99),
        ("metadata.profiles", "host", 99),
        ("actor.process.ancestry[1].pid", "4100", 15),
        ("actor.process.cmd_line", "curl https://example.com/", 13),
    ],
)
def test_observable_of_a_present_value_has_no_fault(
    name: str, value: str | None, type_id: int
) -> None:
    assert faults_of(observable(name, value, type_id)) == []


@pytest.mark.parametrize(
    ("one", "fault"),
    [
        (observable("engine", "x"), f'name: "engine" {UNKNOWN}'),
        (observable("", "x"), f'name: "" {UNKNOWN}'),
        (observable("unmapped.ttl", "64"), f'name: "unmapped.ttl" {UNKNOWN}'),
        (observable("enrichments[x].value", "1"), f'name: "enrichments[x].value" {UNKNOWN}'),
        (observable("dst_endpoint.mac", "x", 3), f'name: "dst_endpoint.mac" {ABSENT}'),
        (observable("enrichments[2].value", "1"), f'name: "enrichments[2].value" {ABSENT}'),
        (observable("dst_endpoint[0].port", "443", 11), f'name: "dst_endpoint[0].port" {ABSENT}'),
        (
            observable("enrichments.value", "3"),
            'value: "3" is not the value of "enrichments.value"',
        ),
        (
            observable("enrichments[0].value", "2"),
            'value: "2" is not the value of "enrichments[0].value"',
        ),
        (
            observable("dst_endpoint.port", None, 11),
            'value: is missing, and "dst_endpoint.port" has one',
        ),
        (
            observable("dst_endpoint", "93.184.216.34", 20),
            'value: is there, but "dst_endpoint" is an object, which has none',
        ),
        (
            observable("dst_endpoint.port", "443", 2),
            'type_id: 2 is not the type of "dst_endpoint.port", 11',
        ),
    ],
)
def test_observable_that_is_wrong_is_an_error(one: dict[str, Any], fault: str) -> None:
    assert faults_of(one) == [f"error: observables[0].{fault}"]


def test_observable_without_a_name_is_a_warning_if_the_version_requires_none() -> None:
    assert faults_of(observable(None, "x")) == [
        "warning: observables[0]: has no name, so it refers to nothing"
    ]


def test_observable_of_another_event_is_not_checked_in_this_event() -> None:
    own = good()["metadata"]["uid"]
    assert faults_of(observable("dst_endpoint.ip", "10.0.0.1", 2, event_uid="another")) == []
    assert faults_of(observable("dst_endpoint.ip", "10.0.0.1", 2, event_uid=own)) != []


def test_observable_check_is_fast_if_many_names_refer_to_many_items() -> None:
    """Use names that each check 100,000 items, so that the budget is spent soon."""
    names = [f"enrichments[].{key}[{number}]" for number in range(200) for key in ("name", "type")]
    event = good(
        enrichments=[{"name": "x", "value": "y", "data": {}}] * 100_000,
        observables=[observable(name, "y") for name in names],
    )
    started = time.monotonic()
    found = VALIDATOR.faults(event)
    assert time.monotonic() - started < 10
    assert any("the observables refer to too many values" in str(fault) for fault in found)


def test_observable_check_counts_values_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count 10 values for the first name: the event, 3 items, the items again, and their values."""
    event = good(
        enrichments=[{"name": "x", "value": "y", "data": {}}] * 3,
        observables=[observable("enrichments.value", "y"), observable("message", "x")],
    )
    for budget, is_spent in ((10, False), (9, True)):
        monkeypatch.setattr(observables, "_BUDGET", budget)
        found = [
            str(fault) for fault in VALIDATOR.faults(event) if "refer to too many" in str(fault)
        ]
        assert len(found) == is_spent
