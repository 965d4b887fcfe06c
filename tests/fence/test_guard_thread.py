"""The thread that waits for the sockets of all guards."""

from __future__ import annotations

import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft.fence.guard_thread import GuardThread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator


class Guard:
    """Guard of one socket: a byte in the socket makes a turn."""

    pause_seconds = 0.0

    def __init__(self) -> None:
        self.far, self.near = socket.socketpair()
        self.near.setblocking(False)
        self.turns: queue.Queue[set[int]] = queue.Queue()
        self.due_at: float | None = None
        self.is_awaited = True
        self.goes_on = True
        self.may_end = threading.Event()
        self.may_end.set()

    def awaited(self, _now: float) -> tuple[int, ...]:
        return (self.near.fileno(),) if self.is_awaited else ()

    def deadline(self, _now: float) -> float | None:
        return self.due_at

    def turn(self, ready: Collection[int]) -> bool:
        if ready:
            self.near.recv(1)
        self.due_at = None
        self.turns.put(set(ready))
        assert self.may_end.wait(60)
        return self.goes_on

    def notify(self) -> None:
        self.far.send(b"x")

    def next_turn(self) -> set[int]:
        return self.turns.get(timeout=60)


@pytest.fixture
def thread() -> Iterator[GuardThread]:
    found = GuardThread()
    yield found
    found.close()


@pytest.fixture
def make(thread: GuardThread) -> Iterator[Callable[[], Guard]]:
    made: list[Guard] = []

    def one() -> Guard:
        made.append(Guard())
        return made[-1]

    yield one
    for each in made:
        each.may_end.set()
        thread.remove(each)
        each.near.close()
        each.far.close()


def test_each_notice_makes_a_turn(thread: GuardThread, make: Callable[[], Guard]) -> None:
    guards = [make() for _ in range(5)]
    for each in guards:
        thread.add(each)
    for _ in range(3):
        for each in guards:
            each.notify()
        for each in guards:
            assert each.next_turn() == {each.near.fileno()}
    assert all(each.turns.empty() for each in guards)


def test_turn_that_waits_delays_no_other_guard(
    thread: GuardThread, make: Callable[[], Guard]
) -> None:
    slow, quick = make(), make()
    slow.may_end.clear()
    for each in (slow, quick):
        thread.add(each)
    slow.notify()
    slow.next_turn()
    for _ in range(20):
        slow.notify()
        quick.notify()
        quick.next_turn()
    assert slow.turns.empty()  # one turn at a time
    slow.may_end.set()
    for _ in range(20):
        slow.next_turn()


def test_turn_is_made_at_a_deadline(thread: GuardThread, make: Callable[[], Guard]) -> None:
    guard = make()
    guard.due_at = time.monotonic() + 0.01
    thread.add(guard)
    assert guard.next_turn() == set()
    guard.due_at = time.monotonic() + 3600
    guard.notify()
    assert guard.next_turn() == {guard.near.fileno()}


def test_descriptor_that_is_not_awaited_makes_no_turn(
    thread: GuardThread, make: Callable[[], Guard]
) -> None:
    guard, other = make(), make()
    guard.is_awaited = False
    guard.notify()
    for each in (guard, other):
        thread.add(each)
    other.notify()
    other.next_turn()
    assert guard.turns.empty()
    thread.remove(guard)
    guard.is_awaited = True
    guard.due_at = time.monotonic()
    thread.add(guard)
    while not guard.next_turn():  # the first turn may be that of the deadline
        pass


def test_removal_waits_for_the_turn(thread: GuardThread, make: Callable[[], Guard]) -> None:
    guard = make()
    guard.may_end.clear()
    thread.add(guard)
    guard.notify()
    guard.next_turn()
    removal = threading.Thread(target=thread.remove, args=(guard,))
    removal.start()
    assert removal.is_alive()
    guard.may_end.set()
    removal.join(60)
    assert not removal.is_alive()
    guard.notify()
    other = make()
    thread.add(other)
    other.notify()
    other.next_turn()
    assert guard.turns.empty()


def test_guard_that_failed_gets_no_more_turns(
    thread: GuardThread, make: Callable[[], Guard]
) -> None:
    guard, other = make(), make()
    guard.goes_on = False
    for each in (guard, other):
        thread.add(each)
    guard.notify()
    guard.next_turn()
    guard.notify()
    for _ in range(3):
        other.notify()
        other.next_turn()
    assert guard.turns.empty()


def test_turn_that_gets_no_thread_of_its_own_is_made_anyway(
    thread: GuardThread, make: Callable[[], Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make()
    thread.add(guard)

    def fail(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(3):
        guard.notify()
        assert guard.next_turn() == {guard.near.fileno()}
    monkeypatch.undo()


def test_closed_end_of_a_descriptor_that_is_not_awaited_makes_no_turn(
    thread: GuardThread, make: Callable[[], Guard]
) -> None:
    """An error of a socket, such as dropped notices, must not keep the thread busy."""
    guard, other = make(), make()
    guard.is_awaited = False
    for each in (guard, other):
        thread.add(each)
    guard.far.close()
    for _ in range(3):
        other.notify()
        other.next_turn()
    assert guard.turns.empty()


def test_thread_that_was_never_used_can_be_closed() -> None:
    GuardThread().close()
