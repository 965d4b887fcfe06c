"""Eviction from a table of all users: the one with the most entries loses one."""

from __future__ import annotations

import pytest

from ocsf_nft.attribution.heavy_users import HeavyUsers


def evicted(numbers: dict[int, int], later: dict[int, int] | None = None) -> int:
    """Return the user to evict from, of a table of 640 entries; ``later`` are newer numbers."""
    heavy = HeavyUsers(640)
    for user, number in numbers.items():
        heavy.note(user, range(number))
    return heavy.evicted({user: range(number) for user, number in (later or numbers).items()})


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({1: 1, 2: 638, 3: 1}, 2),  # not user 1, who was updated least recently
        ({1: 400, 2: 241}, 1),
        ({1: 300, 2: 341}, 2),
        ({1: 1, 2: 11, 3: 10}, 2),
        (dict.fromkeys(range(64), 10), 0),  # nobody is heavy
    ],
)
def test_user_with_the_most_entries_loses_one(numbers: dict[int, int], expected: int) -> None:
    assert evicted(numbers) == expected


def test_user_who_has_lost_his_entries_is_not_heavy_any_more() -> None:
    assert evicted({1: 600, 2: 20}, {3: 1, 1: 10, 2: 20}) == 2
    assert evicted({1: 600, 2: 20}, {3: 1, 2: 10}) == 3
