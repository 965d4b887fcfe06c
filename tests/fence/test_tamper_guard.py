"""Decisions of a sentry about a fence, without a kernel."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.fence import ruleset_batch, tamper_guard
from ocsf_nft.fence.ruleset_changes import Transaction
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.tamper_guard import Sentry
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOPBACK = 0x8


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def one(tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> Sentry:
    """A sentry that watches nothing."""
    monkeypatch.setattr(Sentry, "_open", lambda _self, _installed: None)
    return Sentry(INSTALLED, StateDirectory(tmp_path), told.append, heals=True)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the monotonic clock of the sentry."""

    def set_clock(now: float) -> None:
        clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
        monkeypatch.setattr(tamper_guard, "time", clock)

    return set_clock


def test_sentry_counts_the_changes_after_the_first(one: Sentry, told: list[Any]) -> None:
    flushed = Transaction(changes="the whole ruleset was flushed", comm="nft")
    for number, expected in (
        (1, "the whole ruleset was flushed"),
        (2, "the whole ruleset was flushed; 1 more change followed"),
        (3, "the whole ruleset was flushed; 2 more changes followed"),
    ):
        one._tell_of([flushed] * number, tamper_guard._Arrival.now(), mended_ns=None)
        assert (told[-1].changes, told[-1].comm, told[-1].process) == (expected, "nft", None)


def test_sentry_gives_up_after_ten_restorations_in_a_minute(
    one: Sentry, at: Callable[[float], None]
) -> None:
    one._mended.extend(float(number) for number in range(1, 10))
    at(10.0)
    assert not one._is_fighting()
    one._mended.append(10.0)
    for now, is_fighting in ((10.0, True), (60.9, True), (61.0, False)):
        at(now)
        assert one._is_fighting() == is_fighting
    one._mended.append(60.0)  # the first of the last ten is at 2 now
    assert one._is_fighting()


def test_sentry_reports_lost_notices_once_a_minute(
    one: Sentry, at: Callable[[float], None]
) -> None:
    reported = []
    for now in (100.0, 100.1, 159.9, 160.0, 161.0):
        at(now)
        reported.append(one._tells_overrun())
    assert reported == [True, False, False, True, False]


def test_sentry_sleeps_between_turns_and_longer_where_it_restores_nothing(
    one: Sentry, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(one, "_turn", one._ends.set)
    for one._heals in (True, False):
        one._ends.clear()
        one._guard()
    assert slept == [0.002, 0.05]


def test_sentry_waits_until_the_next_event_it_has_to_act_on(
    one: Sentry, at: Callable[[float], None], told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Poll:
        def register(self, *_: object) -> None:
            pass

        def poll(self, milliseconds: float | None) -> list[tuple[int, int]]:
            waits.append(milliseconds)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    at(100.0)
    one._turn()
    one._rests_until = 103.0
    one._turn()
    one._links_from = 100.5
    one._turn()
    one._links_from = 0.0
    at(103.0)
    one._turn()
    assert waits == [None, 3000.0, 500.0, None]
    assert not one.is_resting
    assert told == [None]


def test_sentry_reads_notices_of_links_at_intervals(
    one: Sentry, at: Callable[[float], None], told: list[Any]
) -> None:
    at(100.0)
    links, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with links, other:
        links.setblocking(False)
        one._see_links(links)
    assert (one._links_from, told) == (100.02, [None])


def _post(has_put_right: bool) -> Any:
    """A post with one notice, whose change was put right by now or not."""
    flushed = Transaction(changes="the whole ruleset was flushed")
    return SimpleNamespace(
        read=lambda: [flushed],
        has_put_right=lambda _: has_put_right,
        was_regular=lambda _: False,
    )


def test_sentry_reports_a_change_that_a_look_has_repaired_as_repaired_at_once(
    one: Sentry, told: list[Any]
) -> None:
    one._see(_post(has_put_right=True))
    assert [(each.changes, each.mended_ns) for each in told] == [
        ("the whole ruleset was flushed", 0)
    ]


def test_sentry_that_gives_up_rests_for_a_minute(
    one: Sentry, at: Callable[[float], None], told: list[Any]
) -> None:
    at(100.0)
    one._mended.extend([99.0] * 10)
    one._see(_post(has_put_right=False))
    assert [each.given_up for each in told] == [True]
    assert one._rests_until == 160.0


def test_sentry_fences_new_links_in_the_sandbox_and_not_at_the_guard(
    one: Sentry, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[tuple[str, object]] = []
    posts: Any = [
        SimpleNamespace(commit=lambda what, where=where: commits.append((where, what)))
        for where in ("sandbox", "host")
    ]
    loads = tuple((None, SimpleNamespace(whole=what)) for what in ("fence", "guard"))
    monkeypatch.setattr(ruleset_batch, "hooked_to", lambda whole, names: (whole, names))
    monkeypatch.setattr(one, "_posts", posts)
    one.adopt(SimpleNamespace(links={"old"}, loads=loads), None)  # type: ignore[arg-type]
    one._cover({"old", "new"})
    assert commits == [("sandbox", ("fence", {"new"}))]


def test_sentry_closes_its_descriptor_once(one: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(os, "close", closed.append)
    one._close()
    one._wake = 0
    one._close()
    one._close()
    assert closed == [0]


def _notice(name: str, *, kind: int = rtnetlink.RTM_NEWLINK, flags: int = 0) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, 7, flags, 0)
    return netlink.message(kind, 0, body + netlink.attribute(3, name.encode() + b"\0"))


def test_sentry_takes_each_new_link_of_a_datagram(one: Sentry) -> None:
    unnamed = netlink.message(rtnetlink.RTM_NEWLINK, 0, bytes(16))
    datagram = b"".join((
        _notice("route", kind=24), unnamed, _notice("lo", flags=_LOOPBACK), _notice("known"),
        _notice("new0"), _notice("new1"), _notice("gone"),
        _notice("gone", kind=rtnetlink.RTM_DELLINK), _notice("late", kind=rtnetlink.RTM_DELLINK),
    ))  # fmt: skip
    one._late = {"known", "late"}
    names: set[str] = set()
    one._take_links(datagram, names)
    assert (names, one._late) == ({"new0", "new1"}, {"known"})
    one._device = "new1"
    names.clear()
    one._take_links(datagram, names)
    assert names == {"new1"}


@pytest.mark.parametrize(
    ("outcome", "covered", "detail"),
    [
        ("none", [{"late"}], "first"),
        ("sent", [], "first; 1 more change followed"),
        ("failed", [], "first"),
    ],
)
def test_sentry_covers_late_links_or_restores_and_reports_what_that_repaired(
    one: Sentry,
    told: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    covered: list[set[str]],
    detail: str,
) -> None:
    """A change that came before the restoration is repaired by it, one that came after is not."""
    first, repaired, later = (Transaction(changes=each) for each in ("first", "second", "third"))
    found: list[set[str]] = []
    monkeypatch.setattr(one, "_mend", lambda _post, _foreign: outcome)
    monkeypatch.setattr(one, "_cover", found.append)
    monkeypatch.setattr(one, "_late", {"late"})
    post: Any = SimpleNamespace(
        read=lambda: [repaired, later], has_put_right=lambda each: each is repaired
    )
    left = one._meet(post, [first])
    assert found == covered
    assert [each.changes for each in told] == [detail]
    assert left == ([repaired, later] if outcome == "sent" else [])
