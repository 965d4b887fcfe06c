"""The range of each stored value: a value that no version writes shows damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.accounting import incident_codec
from ocsf_nft.accounting.counter_id import Whose
from ocsf_nft.accounting.flow_counter import MOST
from ocsf_nft.accounting.incidents import grown
from ocsf_nft.accounting.open_incidents import Opened, OpenStreak
from ocsf_nft.attempt import Attempt
from tests.accounting.reading import key, record, tcp

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("reader", "least", "most"),
    [
        (incident_codec._LONG, -(1 << 63), (1 << 63) - 1),
        (incident_codec._PACKETS, 0, MOST),
        (incident_codec._32_BITS, 0, 0xFFFFFFFF),
        (incident_codec._16_BITS, 0, 0xFFFF),
        (incident_codec._8_BITS, 0, 0xFF),
        (incident_codec._RECORD["ip_version"], 4, 6),
        (incident_codec._PROCESS["pid"], 0, 0xFFFFFFFF),
        (incident_codec._STREAK["windows"], 1, MOST),
        (incident_codec._STREAK["found_at"], 1, MOST),
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


def test_no_incident_is_open_after_a_damaged_file_is_quarantined() -> None:
    opened, attempt = Opened(), Attempt.of(record(tcp()))
    end = grown(None, key(tcp()), attempt, lambda *_: False)
    streak = OpenStreak(Whose(sandbox="sb", rule="egress", epoch="boot:1"), key(tcp()), end)
    opened.goes_on(streak)
    opened.leave(streak)
    opened.clear()
    assert opened.changed == {}
    assert list(opened.due()) == []
