"""Thread that waits for the kernel's notices about all watched fences."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.host_notices import HostNotices

if TYPE_CHECKING:
    from collections.abc import Collection


class Watched(Protocol):
    """Something with sockets that must be handled soon after they are readable."""

    #: Pause after each turn.
    pause_seconds: float

    def awaited(self, now: float) -> Collection[int]:
        """Return the descriptors to wait for; ``now`` is the time by :func:`time.monotonic`."""

    def deadline(self, now: float) -> float | None:
        """Return when a turn is due without a readable descriptor, by :func:`time.monotonic`."""

    def turn(self, ready: Collection[int]) -> bool:
        """Handle the readable descriptors; return False if the watching must end."""


class GuardThread:
    """Thread that waits for all watched sockets, and begins a turn of those that are readable.

    Each turn has a thread of its own. A turn may wait for the kernel while a process in its sandbox
    holds a lock there: this must not delay the turns of other sandboxes.
    """

    def __init__(self) -> None:
        #: Notices about the guards of all sandboxes.
        self.host_notices = HostNotices(self)
        self._changed = threading.Condition()
        #: What is watched, and the owner of each descriptor that is waited for now.
        self._watched: set[Watched] = set()
        self._awaited: dict[int, Watched] = {}
        self._busy: set[Watched] = set()
        self._deadlines: dict[Watched, float] = {}
        #: Time until which the thread waits without an event.
        self._waits_until = float("inf")
        self._is_stopping = False
        self._epoll: select.epoll
        self._wake = -1
        self._thread = threading.Thread(target=self._run, name="tamper-guard", daemon=True)

    def close(self) -> None:
        """End the thread; call :meth:`remove` for each watched object before."""
        if self._wake < 0:  # it was never used
            return
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._wake = -1

    def add(self, watched: Watched) -> None:
        """Begin to watch; the first call starts the thread."""
        with self._changed:
            if self._wake < 0:
                self._start()
            self._arm(watched)
            self._watched.add(watched)

    def _start(self) -> None:
        self._epoll = select.epoll()
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(wake, select.EPOLLIN)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._epoll.close()
            os.close(wake)
            raise UnsupportedError(
                "the thread that watches the fences can't be started: raise the limit of processes"
            ) from error
        self._wake = wake

    def remove(self, watched: Watched) -> None:
        """End the watching, and wait until a running turn has ended.

        Do nothing if the object is not watched.
        """
        with self._changed:
            self._watched.discard(watched)
            self._disarm(watched)
            self._changed.wait_for(lambda: watched not in self._busy)

    def _run(self) -> None:
        while not self._is_stopping:
            for watched, ready in self._wait().items():
                # A daemon: the end of the program must not wait for the kernel.
                turn = threading.Thread(
                    target=self._turn, args=(watched, ready), name="tamper-guard-turn", daemon=True
                )
                try:
                    turn.start()
                except RuntimeError:  # the limit of processes is reached
                    self._turn(watched, ready)

    def _wait(self) -> dict[Watched, set[int]]:
        """Wait until turns are due; return the readable descriptors of each."""
        with self._changed:
            until = min(self._deadlines.values(), default=None)
            self._waits_until = float("inf") if until is None else until
        seconds = None if until is None else max(0.0, until - time.monotonic())
        events = self._epoll.poll(seconds)
        due: dict[Watched, set[int]] = {}
        with self._changed:
            for descriptor, _ in events:
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif (watched := self._awaited.get(descriptor)) is not None:
                    due.setdefault(watched, set()).add(descriptor)
            now = time.monotonic()
            for watched, deadline in self._deadlines.items():
                if deadline <= now:
                    due.setdefault(watched, set())
            for watched in due:
                self._disarm(watched)
                self._busy.add(watched)
        return due

    def _turn(self, watched: Watched, ready: set[int]) -> None:
        goes_on = False
        try:
            goes_on = watched.turn(ready)
            if goes_on:
                time.sleep(watched.pause_seconds)
        finally:
            with self._changed:
                self._busy.discard(watched)
                if goes_on and watched in self._watched:
                    self._arm(watched)
                self._changed.notify_all()

    def _disarm(self, watched: Watched) -> None:
        self._deadlines.pop(watched, None)
        for descriptor in [each for each, of in self._awaited.items() if of is watched]:
            # A descriptor without any event would still report errors, such as dropped notices.
            self._epoll.unregister(descriptor)
            del self._awaited[descriptor]

    def _arm(self, watched: Watched) -> None:
        now = time.monotonic()
        for descriptor in watched.awaited(now):
            self._epoll.register(descriptor, select.EPOLLIN)
            self._awaited[descriptor] = watched
        deadline = watched.deadline(now)
        if deadline is not None:
            self._deadlines[watched] = deadline
            if deadline < self._waits_until:
                os.eventfd_write(self._wake, 1)  # the thread waits for a shorter time
