"""Attribution of several attempts: it names no single process that did not make all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ocsf_nft.flows.incidents import merge
from ocsf_nft.process import Attribution, Process, Seen

_SECOND = 1_000_000_000
CURL = Process(pid=4242, path="/usr/bin/curl", created_ns=1_000 * _SECOND)
WGET = Process(pid=4243, path="/usr/bin/wget", created_ns=1_001 * _SECOND)
UNATTRIBUTED = Attribution(
    method="user", confidence="high", reason="no process was seen", user_name="agent"
)


def by(process: Process, **others: object) -> Attribution:
    known = Attribution(method="capture", confidence="high", reason="it was seen", process=process)
    return replace(known, **others)  # type: ignore[arg-type]


def by_several(*seen: Seen, unnamed: int = 0) -> Attribution:
    return Attribution(
        method="capture", confidence="high", reason="they were", seen=seen, unnamed=unnamed
    )


def all_of(*attributions: Attribution | None) -> Attribution:
    """Return the attribution of successive attempts together."""
    found, *others = attributions
    for each in others:
        found = merge(found, each)
    assert found is not None
    return found


def named(attribution: Attribution | None) -> dict[int, int | None]:
    """Return the pids of the possible processes, with the number of calls of each."""
    assert attribution is not None
    assert attribution.process is None
    return {each.process.pid: each.calls for each in attribution.seen}


def test_one_process_is_described_as_in_its_latest_attempt() -> None:
    latest = by(replace(CURL, cmd_line="curl -v"), reason="it was seen again")
    assert merge(by(CURL), latest) is latest


@pytest.mark.parametrize("number", [-9, 0, 9])
def test_process_is_recognized_after_a_small_clock_change(number: int) -> None:
    assert CURL.created_ns is not None
    reported = replace(CURL, created_ns=CURL.created_ns + number * _SECOND)
    assert merge(by(CURL), by(reported)) == by(reported)
    assert merge(by(replace(CURL, created_ns=None)), by(CURL)) == by(CURL)


def test_two_processes_are_both_named_as_possible_senders() -> None:
    found = merge(by(CURL), by(WGET, user_name="agent", group_name="agents"))
    assert named(found) == {4242: 1, 4243: 1}
    assert found is not None
    assert (found.method, found.confidence, found.unnamed) == ("capture", "high", 0)
    assert (found.user_name, found.group_name) == ("agent", "agents")


def test_process_with_a_reused_pid_is_another_process() -> None:
    assert CURL.created_ns is not None
    later = replace(CURL, created_ns=CURL.created_ns + 11 * _SECOND)
    found = merge(by(CURL), by(later))
    assert found is not None
    assert [each.process for each in found.seen] == [CURL, later]


def test_process_that_changed_its_program_is_not_a_single_process() -> None:
    found = merge(by(CURL), by(replace(CURL, path="/usr/bin/wget")))
    assert named(found) == {4242: 2}


def test_calls_of_each_process_add_up() -> None:
    several = by_several(Seen(process=CURL, calls=3), Seen(process=WGET, calls=4))
    found = all_of(by(CURL), several, by(WGET), several)
    assert named(found) == {4242: 7, 4243: 9}
    for first, last in (
        (by(CURL, seen=several.seen), by(CURL)),
        (by(CURL), by(CURL, seen=several.seen)),
    ):
        assert named(merge(first, last)) == {4242: 4, 4243: 4}


def test_unnamed_processes_beside_one_process_stay_counted() -> None:
    for first, last in ((by(CURL, unnamed=2), by(CURL)), (by(CURL), by(CURL, unnamed=2))):
        found = merge(first, last)
        assert named(found) == {4242: 2}
        assert found is not None
        assert found.unnamed == 2


def test_processes_are_named_by_age_whatever_the_order_of_their_attempts() -> None:
    assert list(named(merge(by(WGET), by(CURL)))) == [4242, 4243]
    found = all_of(*reversed(one_after_the_other(17)))
    assert list(named(found)) == list(range(2, 18))


@pytest.mark.parametrize("unattributed", [UNATTRIBUTED, None])
def test_sole_sender_beside_unattributed_attempts_has_medium_confidence(
    unattributed: Attribution | None,
) -> None:
    curl = by(CURL, user_name="agent", group_name="agents")
    for found in (merge(unattributed, curl), merge(curl, unattributed)):
        assert found is not None
        assert (found.process, found.seen, found.unnamed) == (CURL, (), 0)
        assert (found.user_name, found.group_name) == ("agent", "agents")
        assert (found.method, found.confidence) == ("capture", "medium")


@pytest.mark.parametrize("unattributed", [UNATTRIBUTED, None])
def test_process_that_was_not_seen_to_send_is_no_sole_sender(
    unattributed: Attribution | None,
) -> None:
    held_the_socket = replace(by(CURL), process=None, seen=(Seen(process=CURL),), confidence="low")
    for found in (merge(unattributed, held_the_socket), merge(held_the_socket, unattributed)):
        assert found is not None
        assert (found.process, named(found), found.confidence) == (None, {4242: None}, "low")


@pytest.mark.parametrize("unattributed", [UNATTRIBUTED, None])
def test_unattributed_attempt_makes_the_numbers_uncertain(
    unattributed: Attribution | None,
) -> None:
    for found in (
        all_of(unattributed, by(CURL), by(WGET), by(WGET)),
        all_of(by(CURL), unattributed, by(CURL), by(WGET)),
    ):
        assert named(found)[4242] is None


def test_unattributed_attempts_have_the_latest_reason() -> None:
    latest = replace(UNATTRIBUTED, reason="another")
    assert merge(UNATTRIBUTED, latest) is latest
    assert merge(None, UNATTRIBUTED) is merge(UNATTRIBUTED, None) is UNATTRIBUTED
    assert merge(None, None) is None


def test_merged_attribution_has_the_lowest_confidence_and_method() -> None:
    socket = by(CURL, method="socket", confidence="medium")
    assert merge(by(CURL), socket) == merge(socket, by(CURL)) == socket
    for found in (merge(by(WGET), socket), merge(socket, by(WGET))):
        assert found is not None
        assert (found.method, found.confidence) == ("socket", "medium")


def one_after_the_other(number: int) -> list[Attribution]:
    return [by(replace(CURL, pid=pid, created_ns=pid * _SECOND)) for pid in range(1, number + 1)]


def test_each_of_many_processes_counts_and_the_latest_are_named() -> None:
    found = all_of(*one_after_the_other(400))
    assert list(named(found)) == list(range(385, 401))
    assert found.unnamed == 384


def test_unnamed_process_that_returns_is_not_counted_again() -> None:
    every = one_after_the_other(20)
    found = all_of(*every)
    again = all_of(found, *every * 5)
    assert again.unnamed == found.unnamed == 4
    assert named(again).keys() == named(found).keys()


def test_processes_without_start_times_count_as_many_as_were_seen_together() -> None:
    every = [
        by(replace(each.process, created_ns=None))
        for each in one_after_the_other(100)
        if each.process
    ]
    found = all_of(*every)
    assert (len(found.seen), found.unnamed) == (16, 1)
    at_once = by_several(
        *(Seen(process=each.process, calls=1) for each in every[:32] if each.process)
    )
    for first, last, unnamed in (
        (found, at_once, 16),
        (at_once, found, 16),
        (found, replace(at_once, unnamed=400), 416),
        (by_several(unnamed=3), by(CURL), 3),
    ):
        assert all_of(first, last).unnamed == unnamed


def test_uncounted_calls_add_nothing() -> None:
    unknown = by_several(Seen(process=CURL, calls=None), Seen(process=WGET, calls=None))
    assert named(merge(unknown, unknown)) == {4242: None, 4243: None}
    assert named(merge(unknown, by(CURL))) == {4242: 1, 4243: None}
    assert named(merge(by(CURL), unknown)) == {4242: 1, 4243: None}


def test_processes_with_one_pid_are_two_if_they_began_ten_seconds_apart() -> None:
    assert CURL.created_ns is not None
    for apart_ns, number in ((10 * _SECOND - 1, 0), (10 * _SECOND, 2)):
        later = replace(CURL, created_ns=CURL.created_ns + apart_ns)
        for one, other in ((CURL, later), (later, CURL)):
            found = merge(by(one), by(other))
            assert found is not None
            assert len(found.seen) == number


def test_merged_attribution_names_sixteen_processes_and_counts_none_twice() -> None:
    found = all_of(*one_after_the_other(16))
    assert (len(found.seen), found.unnamed) == (16, 0)
    found = all_of(*one_after_the_other(17))
    assert (len(found.seen), found.unnamed) == (16, 1)
