"""Socket lookups of all sandboxes: they share a thread and a budget of time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.attribution import sock_diag
from ocsf_nft.attribution.bpf_capture import cookie
from ocsf_nft.attribution.socket_method import SocketLookup, TimeBudget
from ocsf_nft.errors import AbsentError, OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.attribution.program_hashes import ProgramHashes
    from ocsf_nft.attribution.sock_diag import ClosedSockets
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

LOOKUP_INACTIVE: Final = "process lookup is not active for this sandbox"
_TOO_LONG: Final = "the lookup of its process would have taken too long"


@dataclass(slots=True, eq=False)
class AttachedNamespace:
    """Network namespace of a sandbox with attribution of its packets."""

    namespace: Namespace
    #: The kernel's number of the namespace (cookie); None if it is not known.
    cookie: int | None = None
    #: Reason why the capture reports no senders in it, although the capture runs; else None.
    reason: str | None = None


class SocketLookups:
    """Socket lookups of attached namespaces, each opened once: at the start, or when it is needed.

    Deadlines are times of the event loop's clock.
    """

    def __init__(self, hashes: ProgramHashes | None) -> None:
        self._hashes = hashes
        self._budget = TimeBudget()
        #: Lookup in a thread. A hostile process may delay it, so only one runs at a time.
        self._busy: asyncio.Future[None] | None = None
        self._added: set[AttachedNamespace] = set()
        #: Open lookups.
        self.opened: dict[AttachedNamespace, SocketLookup] = {}
        self._opening: dict[AttachedNamespace, asyncio.Task[None]] = {}
        #: Listeners for closed sockets that are not read for a short time.
        self._pausing: set[ClosedSockets] = set()

    def add(self, attached: AttachedNamespace) -> None:
        """Allow lookups in a namespace; the first one opens its lookup."""
        self._added.add(attached)

    async def open(self, attached: AttachedNamespace, *, is_late: bool) -> None:
        """Start to follow the sockets of a namespace that was added, if it is available.

        ``is_late`` is true if the lookup may get records of earlier packets.
        """
        if attached in self._added:
            await asyncio.shield(self._open_lookup(attached, is_late=is_late))

    async def remove(self, attached: AttachedNamespace) -> None:
        """Stop following the sockets of a namespace, after its lookup is open if it is opening."""
        self._added.discard(attached)
        opening = self._opening.pop(attached, None)
        if opening is not None and not opening.done():
            await asyncio.wait([opening])
        lookup = self.opened.pop(attached, None)
        if lookup is not None:
            if lookup.closed is not None:
                asyncio.get_running_loop().remove_reader(lookup.closed.fileno())
            # A lookup in progress may wait for a hostile process.
            await asyncio.to_thread(lookup.__exit__)

    async def close(self) -> None:
        """Stop following all sockets."""
        for attached in tuple(self._added):
            await self.remove(attached)

    async def attributions(
        self, attached: AttachedNamespace, records: Sequence[Record], deadline: float
    ) -> list[Attribution | str]:
        """Return for each record the processes with the packet's socket, or why none were found."""
        if not records:
            return []
        if attached in self._added:
            await wait(self._open_lookup(attached, is_late=True), deadline)
        lookup = self.opened.get(attached)
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

    def _open_lookup(self, attached: AttachedNamespace, *, is_late: bool) -> asyncio.Task[None]:
        if attached not in self._opening:
            opening = self._open_new_lookup(attached, is_late=is_late)
            self._opening[attached] = asyncio.create_task(opening)
        return self._opening[attached]

    async def _open_new_lookup(self, attached: AttachedNamespace, *, is_late: bool) -> None:
        lookup = SocketLookup(attached.namespace, self._hashes, is_late=is_late)
        known = attached.cookie

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
        self.opened[attached] = lookup
        if lookup.closed is not None:
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
