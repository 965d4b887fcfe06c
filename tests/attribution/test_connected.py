from __future__ import annotations

from typing import Final

import pytest

from ocsf_nft.attribution import connected
from ocsf_nft.attribution.connected import Connected
from ocsf_nft.attribution.match import Way

HERE: Final = Way(17, 0, b"\x01\x02\x03\x04", 53)
THERE: Final = HERE._replace(destination_port=443)


def is_complete(known: Connected) -> bool:
    return known.is_complete


@pytest.fixture
def known() -> Connected:
    return Connected()


def test_connected_counts_a_socket_until_it_is_closed(known: Connected) -> None:
    known.add(1, HERE)
    known.add(2, HERE)
    assert known.may_have_sent(HERE, 1000)
    assert not known.may_have_sent(THERE, 1)
    known.close(1, 50)
    assert known.may_have_sent(HERE, 1000)
    known.close(2, 40)  # as another CPU reported it
    assert known.may_have_sent(HERE, 50)
    assert not known.may_have_sent(HERE, 51)
    known.add(3, HERE)
    assert known.may_have_sent(HERE, 51)


def test_connected_counts_each_destination_that_a_socket_had(known: Connected) -> None:
    for way in (HERE, THERE, HERE):
        known.add(1, way)
    assert known.may_have_sent(HERE, 1000)
    assert known.may_have_sent(THERE, 1000)
    known.close(1, 50)
    known.close(1, 60)
    assert [known.may_have_sent(way, 50) for way in (HERE, THERE)] == [True, True]
    assert [known.may_have_sent(way, 51) for way in (HERE, THERE)] == [False, False]


def test_connected_ignores_the_end_of_a_socket_that_was_not_connected(known: Connected) -> None:
    known.close(9, 1000)
    assert not known.may_have_sent(HERE, 1)


def test_connected_stores_a_limited_number_of_closed_destinations(
    known: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected, "_MOST", 2)
    ways = [HERE._replace(destination_port=port) for port in range(5)]
    for number, way in enumerate((*ways[:2], ways[0], *ways[2:])):
        known.add(number, way)
        known.close(number, 100 + number)
    # Closed last, and so stored: 3 and 4. Of the others, the last one at 103.
    assert [known.may_have_sent(ways[number], 104) for number in range(5)] == [
        False, False, False, True, True,
    ]  # fmt: skip
    assert known.may_have_sent(ways[3], 104)
    assert not known.may_have_sent(ways[3], 105)
    assert known.may_have_sent(THERE, 103)
    assert not known.may_have_sent(THERE, 104)


def test_connected_is_incomplete_after_too_many_connections(
    known: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected, "_MOST", 2)
    for _ in range(3):  # what is closed makes room, and the same once more takes none
        known.add(1, HERE)
        known.add(1, HERE)
        known.add(2, THERE)
        assert is_complete(known)
        known.close(1, 10)
        known.close(2, 10)
    for number in range(3):
        known.add(number, HERE)
    assert not is_complete(known)
    assert known.may_have_sent(HERE._replace(protocol=136), 1000)
    known.renew([(number, HERE) for number in range(2)], 20)
    assert is_complete(known)
    known.renew([(number, HERE) for number in range(3)], 20)
    assert not is_complete(known)


def test_connected_is_complete_once_all_were_listed_after_a_loss(known: Connected) -> None:
    known.add(1, HERE)
    known.lose(100)
    known.add(2, HERE)
    assert known.may_have_sent(THERE, 1000)
    known.renew([(3, HERE)], 100)
    assert not is_complete(known)
    known.lose(90)
    known.renew([(3, HERE)], 101)
    assert is_complete(known)
    # What was closed before is not listed.
    assert known.may_have_sent(THERE, 101)
    assert not known.may_have_sent(THERE, 102)
    assert known.may_have_sent(HERE, 102)
    known.close(3, 110)
    assert known.may_have_sent(HERE, 110)
    assert not known.may_have_sent(HERE, 111)
