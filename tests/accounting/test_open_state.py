"""The range of each stored value: a value that no version writes shows damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.accounting import open_state
from ocsf_nft.accounting.counted import MOST
from ocsf_nft.accounting.opened import Opened, OpenStreak
from ocsf_nft.accounting.streaks import grown
from ocsf_nft.accounting.whose import Whose
from ocsf_nft.attempt import Attempt
from tests.accounting.reading import key, record, tcp

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("reader", "least", "most"),
    [
        (open_state._LONG, -(1 << 63), (1 << 63) - 1),
        (open_state._PACKETS, 0, MOST),
        (open_state._32_BITS, 0, 0xFFFFFFFF),
        (open_state._16_BITS, 0, 0xFFFF),
        (open_state._8_BITS, 0, 0xFF),
        (open_state._RECORD["ip_version"], 4, 6),
        (open_state._PROCESS["pid"], 0, 0xFFFFFFFF),
        (open_state._STREAK["windows"], 1, MOST),
        (open_state._STREAK["found_at"], 1, MOST),
    ],
)
def test_stored_number_is_in_its_range(reader: Callable[[Any], Any], least: int, most: int) -> None:
    assert (reader(least), reader(most)) == (least, most)
    for wrong in (least - 1, most + 1, True, "1", 1.0):
        with pytest.raises(ValueError, match="no such number"):
            reader(wrong)


def test_stored_flag_is_true_or_false() -> None:
    assert open_state._flag(True) is True
    assert open_state._flag(False) is False
    with pytest.raises(TypeError):
        open_state._flag(1)


def test_stored_details_are_facts_at_every_depth() -> None:
    facts = {"a": 1, "b": {"c": "x", "d": {"e": True}}}
    assert open_state._details(facts) == facts
    for wrong in ({"a": None}, {"a": {"b": [1]}}, {"a": {"b": {"c": 1.5}}}):
        with pytest.raises(TypeError):
            open_state._details(wrong)


def test_no_incident_is_open_after_a_damaged_file_is_quarantined() -> None:
    opened, attempt = Opened(), Attempt.of(record(tcp()))
    end = grown(None, key(tcp()), attempt, lambda *_: False)
    streak = OpenStreak(Whose(sandbox="sb", rule="egress", epoch="boot:1"), key(tcp()), end)
    opened.goes_on(streak)
    opened.leave(streak)
    opened.clear()
    assert opened.changed == {}
    assert list(opened.due()) == []
