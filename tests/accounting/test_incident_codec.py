"""The range of each stored value: a value that no version writes shows damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.accounting import incident_codec
from ocsf_nft.accounting.counter_id import CounterId
from ocsf_nft.accounting.flow_counter import MAX_COUNT
from ocsf_nft.accounting.incidents import extend_incident
from ocsf_nft.accounting.open_incidents import OpenIncident, OpenIncidents
from ocsf_nft.attempt import Attempt
from tests.accounting.reading import key, record, tcp

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("reader", "least", "most"),
    [
        (incident_codec._LONG, -(1 << 63), (1 << 63) - 1),
        (incident_codec._PACKETS, 0, MAX_COUNT),
        (incident_codec._32_BITS, 0, 0xFFFFFFFF),
        (incident_codec._16_BITS, 0, 0xFFFF),
        (incident_codec._8_BITS, 0, 0xFF),
        (incident_codec._RECORD["ip_version"], 4, 6),
        (incident_codec._PROCESS["pid"], 0, 0xFFFFFFFF),
        (incident_codec._INCIDENT["windows"], 1, MAX_COUNT),
        (incident_codec._INCIDENT["found_at"], 1, MAX_COUNT),
    ],
)
def test_stored_number_is_in_its_range(reader: Callable[[Any], Any], least: int, most: int) -> None:
    assert (reader(least), reader(most)) == (least, most)
    for wrong in (least - 1, most + 1, True, "1", 1.0):
        with pytest.raises(ValueError, match="no such number"):
            reader(wrong)


def test_stored_flag_is_true_or_false() -> None:
    assert incident_codec._flag(True) is True
    assert incident_codec._flag(False) is False
    with pytest.raises(TypeError):
        incident_codec._flag(1)


def test_stored_details_are_facts_at_every_depth() -> None:
    facts = {"a": 1, "b": {"c": "x", "d": {"e": True}}}
    assert incident_codec._details(facts) == facts
    for wrong in ({"a": None}, {"a": {"b": [1]}}, {"a": {"b": {"c": 1.5}}}):
        with pytest.raises(TypeError):
            incident_codec._details(wrong)


def test_open_incidents_are_cleared_with_a_damaged_file() -> None:
    opened, attempt = OpenIncidents(), Attempt.of(record(tcp()))
    end = extend_incident(None, key(tcp()), attempt, lambda *_: False)
    incident = OpenIncident(CounterId(sandbox="sb", rule="egress", epoch="boot:1"), key(tcp()), end)
    opened.update(incident)
    opened.orphan(incident)
    opened.clear()
    assert opened.changed == {}
    assert list(opened.due()) == []
