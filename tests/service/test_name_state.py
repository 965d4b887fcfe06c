"""State of a host name, by a clock of the test."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.service.delivery_answers import FamilyAnswer, NameAnswer
from ocsf_nft.service.name_state import KEEP_SECONDS, MAX_ADDRESSES, NameState

_A, _B, _SIX = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
_FAILURE = FamilyAnswer(error="no server answers")


def answer(four: FamilyAnswer, six: FamilyAnswer | None = None) -> NameAnswer:
    families = {4: four, 6: FamilyAnswer(ttl=3600) if six is None else six}
    return NameAnswer(number=1, name="a.test", families=families)


def found(*texts: str, ttl: int = 60) -> FamilyAnswer:
    return FamilyAnswer(addresses=tuple(map(ip_address, texts)), ttl=ttl)


def test_name_is_looked_up_again_by_its_shortest_ttl() -> None:
    state = NameState(100.0)
    assert (state.next_at, state.is_answered, state.addresses(), state.fault()) == (
        100.0, False, (), None
    )  # fmt: skip
    state.take(answer(found("192.0.2.1", ttl=30), found("2001:db8::1", ttl=40)), 100.0)
    assert state.next_at == 130.0
    assert state.addresses() == (_A, _SIX)
    assert state.fault() is None


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(0, 5), (4, 5), (6, 6), (3599, 3599), (3601, 3600), (2**31 - 1, 3600)]
)
def test_ttl_has_limits(ttl: int, seconds: int) -> None:
    state = NameState(0.0)
    state.take(answer(found("192.0.2.1", ttl=ttl)), 0.0)
    assert state.next_at == min(seconds, 3600)


def test_answer_without_addresses_removes_them_and_is_asked_again_soon() -> None:
    state = NameState(0.0)
    state.take(answer(found("192.0.2.1")), 0.0)
    state.take(answer(found(ttl=3600)), 60.0)
    assert state.addresses() == ()
    assert state.next_at == 120.0
    assert state.fault() == "it has no address that can be allowed"
    absent = FamilyAnswer(ttl=20, is_absent=True)
    state.take(answer(absent, absent), 120.0)
    assert (state.fault(), state.next_at) == ("there is no such name", 140.0)


def test_last_addresses_stay_until_ten_minutes_after_their_ttl() -> None:
    state = NameState(0.0)
    state.take(answer(found("192.0.2.1", ttl=60)), 0.0)
    now = 60.0
    while now < 60.0 + KEEP_SECONDS:
        state.take(answer(_FAILURE, _FAILURE), now)
        assert state.addresses() == (_A,)
        assert state.fault() == (
            "no server answers: its last addresses stay allowed for up to ten minutes"
        )
        assert 0 < state.next_at - now <= 30
        now = state.next_at
    assert now == 60.0 + KEEP_SECONDS, "a lookup is due when they end"
    state.expire(now)
    assert state.addresses() == ()
    assert state.fault() == "no server answers: its last addresses are not allowed any more"
    state.take(answer(found("192.0.2.2")), now)
    assert (state.addresses(), state.fault()) == ((_B,), None)


def test_pauses_between_failures_grow_and_begin_again_after_an_answer() -> None:
    state = NameState(0.0)
    pauses = []
    for _ in range(12):
        state.take(answer(_FAILURE, _FAILURE), 0.0)
        pauses.append(state.next_at)
    assert pauses[0] <= 0.25
    assert 15.0 <= pauses[-1] <= 30.0
    state.take(answer(found("192.0.2.1")), 0.0)
    state.take(answer(_FAILURE, _FAILURE), 0.0)
    assert state.next_at <= 0.25


def test_known_addresses_count_until_there_is_an_answer() -> None:
    state, known = NameState(0.0), (_SIX, _B, _A)
    assert state.addresses(known) == (_A, _B, _SIX)
    state.take(answer(_FAILURE, _FAILURE), 0.0)
    assert state.addresses(known) == (_A, _B, _SIX)
    state.take(answer(found("192.0.2.1"), _FAILURE), 1.0)
    assert state.addresses(known) == (_A, _SIX), "one version of IP has no answer yet"
    state.expire(KEEP_SECONDS)
    assert state.addresses(known) == (_A,)


def test_failure_of_one_version_of_ip_is_no_fault_of_the_other() -> None:
    state = NameState(0.0)
    state.take(answer(found("192.0.2.1", ttl=5), _FAILURE), 0.0)
    assert state.addresses() == (_A,)
    state.expire(KEEP_SECONDS)
    assert state.fault() is None
    state.take(answer(found("192.0.2.1", ttl=5), found("2001:db8::1")), 0.0)
    state.take(answer(found("192.0.2.2", ttl=5), _FAILURE), 1.0)
    assert state.addresses() == (_B, _SIX)
    assert "stay allowed" in (state.fault() or "")
    assert state.next_at <= 6.0


def test_addresses_that_are_refused_or_too_many_are_a_fault() -> None:
    state = NameState(0.0)
    refused = FamilyAnswer(addresses=(_A,), refused=("127.0.0.1 (it is a loopback address)",))
    state.take(answer(refused), 0.0)
    assert state.addresses() == (_A,)
    assert state.fault() == (
        "addresses that a name must not allow are refused: 127.0.0.1 (it is a loopback address)"
    )
    many = [f"192.0.2.{number}" for number in range(1, 41)]
    state.take(answer(found(*many)), 0.0)
    assert len(state.addresses()) == MAX_ADDRESSES == 32
    assert state.fault() == "only 32 of its 40 addresses are allowed"


_ANSWERS = st.one_of(
    st.just(_FAILURE),
    st.builds(
        lambda numbers, ttl: found(*sorted(f"192.0.2.{each}" for each in numbers), ttl=ttl),
        st.sets(st.integers(1, 9), max_size=3),
        st.integers(0, 2**62),
    ),
)


@given(st.lists(st.tuples(_ANSWERS, st.floats(0, 4000)), max_size=20))
def test_no_address_stays_longer_than_allowed(answers: list[tuple[FamilyAnswer, float]]) -> None:
    state, now, confirmed = NameState(0.0), 0.0, 0.0
    for each, pause in answers:
        state.take(answer(each), now)
        assert now <= state.next_at <= now + 3600
        if each.error is None:
            confirmed = now
            assert state.addresses() == each.addresses
        elif now > confirmed + 3600 + KEEP_SECONDS:
            assert state.addresses() == ()
        now += pause
