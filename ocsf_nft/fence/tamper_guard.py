"""Stand guard over a fence: notice at once what becomes of its tables and links, and put it back.

All of it is done by a thread of its own, which waits for nothing but the kernel: neither for the
events that are to be told, nor for a look at what stands, which takes many times as long. It does
no more than to send what was prepared; whether the fence stands then is for a look to say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import FenceError, OcsfNftError, SourceError
from ocsf_nft.fence import installer, kernel_errors, load_ruleset, nft, ruleset_batch
from ocsf_nft.fence.nft_monitor import OVERRUN, Post
from ocsf_nft.fence.tamper_attribution import culprit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from ocsf_nft.fence.replace_keeping_counters import Place
    from ocsf_nft.fence.restore_batch import Remedy
    from ocsf_nft.fence.ruleset_changes import Transaction
    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Process

#: Who puts a fence back more often than that fights with somebody, and gives it a rest.
MOST_TIMES: Final = 10
WITHIN_SECONDS: Final = 60.0
REST_SECONDS: Final = 60.0

_RECEIVE_BYTES: Final = 1 << 16
#: Between two turns, for whoever changes other tables, or makes links, in a loop.
_BREATH_SECONDS: Final = 0.002
#: The same where nothing is put back, so that nothing is in a hurry.
_IDLE_SECONDS: Final = 0.05
#: Between two looks at links, the first of which is at once.
_LINKS_SECONDS: Final = 0.02
#: How it went to put a fence back: by what was prepared; by nft; it wasn't to be; it can't be.
_Outcome: TypeAlias = Literal["sent", "renewed", "none", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """A change to a fence that somebody else made, and what was done about it.

    ``changes`` is in words; ``process`` is who did it, where that can be known, and ``comm`` what
    it called itself. ``arrived_ns`` is when it was noticed (ns since the epoch, UTC), ``mended_ns``
    how long it took from then to put the fence back, 0 where a look was quicker; None when it was
    not put back here: it is not to be, its record is another one now (``is_regular``), or it can't
    be. ``given_up``: it has been put back too often.
    """

    changes: str
    process: Process | None
    comm: str | None
    arrived_ns: int
    mended_ns: int | None = None
    given_up: bool = False
    is_regular: bool = False


class _Arrival(NamedTuple):
    """When a notice was read, in ns: since the epoch, UTC, and by CLOCK_BOOTTIME."""

    epoch_ns: int
    since_boot_ns: int

    @classmethod
    def now(cls) -> Self:
        return cls(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Sentry:
    """Guards an installed fence, from :meth:`begin` to :meth:`end`.

    ``tell`` is called from its thread with each alteration, with None when links or routes have
    changed, so that a look is due, and with what ended it when it can't go on. Without ``heals``
    nothing is put back.
    """

    def __init__(
        self,
        installed: Installed,
        state: StateDirectory,
        tell: Callable[[Alteration | Exception | None], None],
        *,
        heals: bool,
    ) -> None:
        self._sandbox = installed.spec.sandbox
        self._namespace = installed.namespace
        self._state = state
        self._tell = tell
        self._heals = heals
        self._posts: list[Post] = []
        self._links: socket.socket | None = None
        self._wake = -1
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="sentry", daemon=True)
        self._remedy: Remedy | None = None
        self._mark: tuple[int, ...] | None = None
        #: Links that came and are on no record yet, and those of them that may be gone again.
        self._late: set[str] = set()
        self._hooked: set[str] = set()
        self._device = None if installed.spec.tap is None else installed.spec.tap.device
        self._mended: deque[float] = deque(maxlen=MOST_TIMES)
        self._rests_until: float | None = None
        self._links_from = 0.0
        self._overruns_from = 0.0
        try:
            self._open(installed)
        except BaseException:
            self._close()
            raise

    @property
    def is_resting(self) -> bool:
        """Whether the fence is not to be put back now."""
        return self._rests_until is not None

    @property
    def has_hooked(self) -> bool:
        """Whether links were fenced since there is a remedy; they may be gone again."""
        return bool(self._hooked)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """End the thread, when it has done what it is at, and close the sockets."""
        self._ends.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    def adopt(self, remedy: Remedy | None, mark: tuple[int, ...] | None) -> None:
        """Put the fence back by this from now on; by None, as it is on record, which takes longer.

        ``mark`` is that of the record (:meth:`StateDirectory.mark`) that it was made for.
        """
        self._remedy, self._mark = remedy, mark
        self._hooked = set()

    def own(self) -> None:
        """Hold the fence's tables as this process's own from now on, if they aren't yet; blocks.

        No other process can change them then, until the sentry ends. Raises FenceError.
        """
        try:
            for post in self._posts:
                if not post.owns:
                    post.own()
        except OSError as error:
            raise FenceError(
                f"the tables of sandbox {self._sandbox} can't be held as this run's own: "
                f"{kernel_errors.why_not_held(error)}"
            ) from error

    def renew(self) -> Installed | None:
        """Do what :func:`installer.renew` does, by the sentry's own sockets; blocks."""
        try:
            with self._state.locked():
                renewed = installer.put_back(self._sandbox, self._state, self._load)
                remedy = self._remedy
                if remedy is None or (renewed is not None and remedy.fits(renewed)):
                    self._mark = self._state.mark(self._sandbox)
                else:  # somebody has installed it anew: what was prepared is not for that
                    for post in self._posts:
                        post.regular = post.covered
        finally:  # who has made the ruleset has not seen the latest links, maybe
            self._cover(set(self._late))
        return renewed

    def _load(self, namespace: Namespace, text: str) -> None:
        """Load a ruleset of ours where others may not change the tables; see :func:`nft.load`."""
        where = namespace.identity()
        post = next((each for each in self._posts if each.identity == where), None)
        if post is None:
            nft.load(namespace, text)
            return
        try:
            statements = ruleset_batch.compiled(namespace, text)
        except FenceError:
            if post.owns:
                raise
            nft.load(namespace, text)
            return
        try:
            post.mend(statements)
        except OSError as error:
            if error.errno in {errno.EMSGSIZE, errno.ENOBUFS} and not post.owns:
                nft.load(namespace, text)  # which may send more at once
                return
            raise kernel_errors.of_ruleset(error) from error

    def _open(self, installed: Installed) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        spec = installed.spec
        guard = load_ruleset.guard_places(spec)
        if guard and installed.namespace.identity() == load_ruleset.HOST.identity():
            self._posts.append(
                Post(installed.namespace, (*load_ruleset.fence_places(spec), *guard))
            )
        else:
            self._posts.append(Post(installed.namespace, load_ruleset.fence_places(spec)))
            if guard:
                self._posts.append(Post(load_ruleset.HOST, guard))
        self._links = installed.namespace.call(lambda: rtnetlink.subscribe(routes=True))

    def _close(self) -> None:
        for post in self._posts:
            post.close()
        if self._links is not None:
            self._links.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _guard(self) -> None:
        try:
            while not self._ends.is_set():
                self._turn()
                time.sleep(_BREATH_SECONDS if self._heals else _IDLE_SECONDS)
            for post in self._posts:  # what came as it was told to end
                self._see(post)
        except OSError as error:
            self._tell(
                SourceError(f"the fence in {self._namespace} can't be watched: {error.strerror}")
            )
        except Exception as error:  # noqa: BLE001 - raised where the news is awaited
            self._tell(error)

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        now = time.monotonic()
        if self._rests_until is not None and now >= self._rests_until:
            self._end_rest()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        until = [self._rests_until] if self._rests_until is not None else []
        if self._rests_until is None:
            for post in self._posts:
                poll.register(post.notices, select.POLLIN)
        if now < self._links_from:
            until.append(self._links_from)
        elif self._links is not None:
            poll.register(self._links, select.POLLIN)
        ready = dict(poll.poll(max(0.0, min(until) - now) * 1000 if until else None))
        for post in self._posts:
            if post.notices.fileno() in ready:
                self._see(post)
        if self._links is not None and self._links.fileno() in ready:
            self._see_links(self._links)

    def _see(self, post: Post) -> None:
        found = post.read()
        overtaken = [each for each in found if post.has_put_right(each)]
        if overtaken := [each for each in overtaken if not post.was_regular(each)]:
            # A look was quicker.
            self._tell_of(overtaken, _Arrival.now(), mended_ns=0)
        while foreign := [each for each in found if not post.has_put_right(each)]:
            found = self._meet(post, foreign)

    def _meet(self, post: Post, foreign: list[Transaction]) -> list[Transaction]:
        """See to what others did; what has been told meanwhile and is not seen to."""
        begun, arrival = time.monotonic_ns(), _Arrival.now()
        # Whoever changes very much at once, as some do to their own tables, fights with nobody.
        is_certain = any(each is not OVERRUN for each in foreign)
        given_up = self._heals and is_certain and self._is_fighting()
        outcome: _Outcome = "none"
        mended_ns = None
        later: list[Transaction] = []
        if self._heals and not given_up:
            outcome = self._mend(post, foreign)
            if outcome == "none":  # who installs has not seen the latest links, maybe
                self._cover(set(self._late))
        if outcome in {"sent", "renewed"}:
            mended_ns = time.monotonic_ns() - begun
            # What was lost now may be our own alone: a look, which follows, tells.
            later = [each for each in post.read() if each is not OVERRUN]
            # What came before our own was put right by it as well.
            foreign += [each for each in later if post.has_put_right(each)]
        if is_certain and outcome in {"sent", "renewed", "failed"}:
            self._mended.append(time.monotonic())
        if not is_certain and not self._tells_overrun():
            self._tell(None)
            return later
        is_regular = self._heals and not given_up and outcome == "none"
        self._tell_of(
            foreign, arrival, mended_ns=mended_ns, given_up=given_up, is_regular=is_regular
        )
        if given_up:
            self._rests_until = time.monotonic() + REST_SECONDS
            return []
        return later

    def _tell_of(
        self,
        foreign: list[Transaction],
        arrival: _Arrival,
        *,
        mended_ns: int | None,
        given_up: bool = False,
        is_regular: bool = False,
    ) -> None:
        more = len(foreign) - 1
        first = foreign[0]
        followed = f"; {more} more change{'' if more == 1 else 's'} followed" if more else ""
        self._tell(
            Alteration(
                changes=f"{first.changes}{followed}",
                process=culprit(first.pid, first.comm, arrival.since_boot_ns),
                comm=first.comm,
                arrived_ns=arrival.epoch_ns,
                mended_ns=mended_ns,
                given_up=given_up,
                is_regular=is_regular,
            )
        )

    def _tells_overrun(self) -> bool:
        """Whether it is to be told now that changes could not be read: once in a while."""
        now = time.monotonic()
        if now < self._overruns_from:
            return False
        self._overruns_from = now + WITHIN_SECONDS
        return True

    def _is_fighting(self) -> bool:
        return (
            len(self._mended) == MOST_TIMES and time.monotonic() - self._mended[0] < WITHIN_SECONDS
        )

    def _end_rest(self) -> None:
        self._mended.clear()
        for post in self._posts:
            post.read()
        self._rests_until = None
        self._tell(None)

    def _mend(self, post: Post, foreign: Iterable[Transaction]) -> _Outcome:
        """Put the fence back, if it is still to be the one that is guarded."""
        doubtful = [place for each in foreign for place in each.made]
        try:
            with self._state.locked():
                # Whoever installs or removes a fence in the regular way has put that on record.
                if self._state.mark(self._sandbox) != self._mark:
                    return "none"
                if all(post.has_put_right(each) for each in foreign):
                    return "sent"  # by a look, for which this had to wait
                if self._remedy is not None:
                    with contextlib.suppress(OSError):
                        self._send(post, self._remedy, doubtful)
                        return "sent"
            return "none" if self.renew() is None else "renewed"
        except (OSError, OcsfNftError):  # a look tells what is wrong
            return "failed"

    def _send(self, post: Post, remedy: Remedy, doubtful: Iterable[Place]) -> None:
        for _, load in remedy.loads:
            if set(load.places) <= set(post.places):
                more = ruleset_batch.hooked_to(load.whole, self._late - remedy.links)
                *others, last = load.ways(doubtful)
                for way in others:
                    with contextlib.suppress(OSError):  # then another way
                        post.mend((*way, *more))
                        break
                else:
                    post.mend((*last, *more))

    def _see_links(self, sock: socket.socket) -> None:
        names: set[str] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    datagram, sender = sock.recvfrom(_RECEIVE_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # missed some: a look finds them
                        raise
                    continue
                if sender[0] == 0:
                    self._take_links(datagram, names)
        self._late |= names
        if self._heals and self._rests_until is None:
            self._cover(names)
        self._links_from = time.monotonic() + _LINKS_SECONDS
        self._tell(None)

    def _take_links(self, datagram: bytes, names: set[str]) -> None:
        fenced = self._late | (self._remedy.links if self._remedy else frozenset())
        for kind, body in netlink.messages(memoryview(datagram)):
            if kind not in {rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK}:
                continue
            link = rtnetlink.link(body)
            if link is None or link.is_loopback:
                continue
            if kind == rtnetlink.RTM_DELLINK:
                names.discard(link.name)
                self._late.discard(link.name)
            elif self._device in {None, link.name} and link.name not in fenced:
                names.add(link.name)

    def _cover(self, names: set[str]) -> None:
        """Hang the chains of the link layer on new links, at once; the rest is for a look.

        Without the lock: it opens nothing, and where a fence was removed there is no such chain.
        """
        remedy = self._remedy
        if remedy is None or not (names := names - remedy.links):
            return
        post = self._posts[0]
        _, load = remedy.loads[0]
        self._hooked |= names
        # It may be gone again; what can't be fenced, a look tells.
        with contextlib.suppress(OSError, OcsfNftError):
            post.commit(ruleset_batch.hooked_to(load.whole, names))
