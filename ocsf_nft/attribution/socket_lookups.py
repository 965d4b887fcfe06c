"""Socket lookups of all sandboxes, which share a thread and a budget of time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft.attribution import sock_diag
from ocsf_nft.attribution.bpf_capture import cookie
from ocsf_nft.attribution.socket_method import SocketLookup, TimeBudget
from ocsf_nft.errors import AbsentError, OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocsf_nft.attribution.program_hashes import ProgramHashes
    from ocsf_nft.attribution.sock_diag import ClosedSockets
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

LOOKUP_INACTIVE: Final = "process lookup is not active for this sandbox"
_TOO_LONG: Final = "the lookup of its process would have taken too long"


class SocketLookups:
    """Socket lookups by sandbox, each opened once: at the start, or when it is first needed.

    ``sandboxes`` maps names to network namespaces. Deadlines are times of the event loop's clock.
    """

    def __init__(self, sandboxes: Mapping[str, Namespace], hashes: ProgramHashes | None) -> None:
        self._sandboxes = sandboxes
        self._hashes = hashes
        self._budget = TimeBudget()
        #: Lookup in a thread. A hostile process may delay it, so only one runs at a time.
        self._busy: asyncio.Future[None] | None = None
        #: Open lookups by sandbox.
        self.opened: dict[str, SocketLookup] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        #: True if a lookup that is opened now may get records of earlier packets.
        self.is_late = False
        #: Cookies of the sandboxes' namespaces at the start, if the kernel has any.
        self.cookies: Mapping[str, int] = {}
        #: Listeners for closed sockets that are not read for a short time.
        self._pausing: set[ClosedSockets] = set()
        self._stack = contextlib.ExitStack()

    async def open(self) -> None:
        """Start to follow the sockets of each sandbox whose namespace is available."""
        for name in self._sandboxes:
            await asyncio.shield(self._open_lookup(name))

    async def close(self) -> None:
        """Stop following sockets, after the lookups that are being opened are open."""
        if opening := [each for each in self._opening.values() if not each.done()]:
            await asyncio.wait(opening)
        self.opened.clear()
        self._stack.close()

    async def attributions(
        self, sandbox: str, records: Sequence[Record], deadline: float
    ) -> list[Attribution | str]:
        """Return for each record the processes with the packet's socket, or why none were found."""
        if not records:
            return []
        if sandbox in self._sandboxes:
            await wait(self._open_lookup(sandbox), deadline)
        lookup = self.opened.get(sandbox)
        if lookup is None:
            return [LOOKUP_INACTIVE] * len(records)
        found: list[Attribution | str] = [_TOO_LONG] * len(records)

        def look_up(until: float) -> None:
            for number, record in enumerate(records):
                began = time.monotonic()
                if began >= until:
                    return
                found[number] = lookup.attribution(record)
                self._budget.spend(time.monotonic() - began)

        if self._budget.has_time_left():
            await self.run_in_thread(look_up, deadline)
        return list(found)

    async def run_in_thread(self, work: Callable[[float], None], deadline: float) -> None:
        """Run ``work`` in a thread; wait until it ends or until the deadline.

        The argument of ``work`` is the deadline as a time of time.monotonic. While the thread of an
        earlier call runs, ``work`` is skipped.
        """
        left = deadline - asyncio.get_running_loop().time()
        if left > 0 and (self._busy is None or self._busy.done()):
            until = time.monotonic() + left
            self._busy = asyncio.ensure_future(asyncio.to_thread(work, until))
            await asyncio.wait({self._busy}, timeout=left)

    def _open_lookup(self, name: str) -> asyncio.Task[None]:
        if name not in self._opening:
            self._opening[name] = asyncio.create_task(self._open_new_lookup(name))
        return self._opening[name]

    async def _open_new_lookup(self, name: str) -> None:
        lookup = SocketLookup(self._sandboxes[name], self._hashes, is_late=self.is_late)
        known = self.cookies.get(name)

        def open_same() -> None:
            # The namespace may have been replaced since the start: the records are of the old one.
            with contextlib.ExitStack() as opened:
                opened.enter_context(lookup)
                if known is not None and cookie(lookup.tables.namespace) != known:
                    raise AbsentError("the namespace was replaced")
                opened.pop_all()

        try:
            await asyncio.to_thread(open_same)
        except (OcsfNftError, OSError, RuntimeError):  # the method "user" remains
            return
        self._stack.push(lookup)
        self.opened[name] = lookup
        if lookup.closed is not None:
            loop = asyncio.get_running_loop()
            self._stack.callback(loop.remove_reader, lookup.closed.fileno())
            self._read_closed(lookup.closed)

    def _read_closed(self, closed: ClosedSockets) -> None:
        """Read the notices about closed sockets of a sandbox, and again when there are others."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(closed.fileno())
        try:
            closed.read()
        except OSError:  # then no process is named
            return
        # All sandboxes together must not use much of the loop's time.
        self._pausing.add(closed)
        seconds = sock_diag.PACE_SECONDS * len(self._pausing)
        loop.call_later(seconds, self._await_closed, closed)

    def _await_closed(self, closed: ClosedSockets) -> None:
        self._pausing.discard(closed)
        if closed.fileno() >= 0:  # the listener was not closed meanwhile
            asyncio.get_running_loop().add_reader(closed.fileno(), self._read_closed, closed)


async def wait(work: asyncio.Future[None], deadline: float) -> None:
    """Wait until ``work`` is done or until ``deadline``, a time of the event loop's clock."""
    if not work.done():
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait({work}, timeout=left)
