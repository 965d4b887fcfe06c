"""Who did it, by the best way that there is: the rungs of a ladder, and a wait that has an end.

``capture`` first; for what that has not seen, and where there is none, ``socket``; below that the
user, whom the kernel's record names, or nobody. Each says which rung it is, and why no better one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import structlog

from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.attribution.capture_method import Captured, Named
from ocsf_nft.attribution.program_hashes import Hashes
from ocsf_nft.attribution.socket_method import SocketLookup
from ocsf_nft.attribution.time_budget import Credit
from ocsf_nft.attribution.user_names import KeptNames, Names
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from types import TracebackType

    from ocsf_nft.attribution.bpf_layout import Image
    from ocsf_nft.attribution.call_match import Match
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

_log = structlog.get_logger()

#: The best rung to be used.
Top: TypeAlias = Literal["capture", "socket", "user"]
#: The kernel tells of a refused packet microseconds after its record: so long later it has.
_LATER_SECONDS: Final = 0.001
_CHECK_SECONDS: Final = 1.0
#: More than a ring holds, if nothing is added meanwhile.
_MOST_READS: Final = 32
#: Records looked at before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 16
#: The rules whose packets are sent by processes of the sandbox.
_OF_PROCESSES: Final = frozenset({"egress", "link"})

_NOT_ASKED_FOR: Final = "processes are not looked for"
_NOT_SEEN: Final = "no process was seen to try this since it was last told of"
_OF_ONE: Final = "it sent one of the packets; whose the others are was not seen"
_TOO_LONG: Final = "to look for its process would have taken too long"
_NOBODY: Final = Attribution(rung="none", reason="no process of the sandbox sent it by a socket")


class Ladder:
    """Says who sent the packets that records are of, while its context is entered.

    ``sandboxes`` are the namespaces in which there are processes to be named, by sandbox; the
    fences of those that are ``permissive`` refuse nothing. No record waits for longer than
    ``wait_seconds``.
    """

    def __init__(
        self,
        sandboxes: Mapping[str, Namespace],
        *,
        permissive: Collection[str] = (),
        top: Top = "capture",
        wait_seconds: float = 0.05,
        hashed_bytes: int = 0,
    ) -> None:
        """Programs of no more than ``hashed_bytes`` are hashed."""
        self._sandboxes = sandboxes
        self._permissive = permissive
        self._top = top
        self._wait_seconds = wait_seconds
        self._names = KeptNames(Names())
        self._hashes = Hashes(most_bytes=hashed_bytes) if hashed_bytes else None
        self._captured: Captured | None = None
        self._lost = 0
        self._lookups: dict[str, SocketLookup] = {}
        self._stack = contextlib.ExitStack()
        self._credit = Credit()
        #: Who is held up by a hostile process is not waited for a second time.
        self._busy: asyncio.Future[None] | None = None
        #: Nor a name service.
        self._asking: asyncio.Future[None] | None = None
        #: Why the best rung that was asked for is not in use; None where it is.
        self.reason: str | None = None

    @property
    def rung(self) -> Top:
        """The best rung that is in use."""
        if self._captured is not None:
            return "capture"
        return "socket" if self._lookups else "user"

    @property
    def lost(self) -> int:
        """Calls and processes that the capture had no room to tell of."""
        return self._lost if self._captured is None else sum(self._captured.lost)

    async def __aenter__(self) -> Self:
        """Stand on the best rung that this host allows; raises nothing where that is the lowest."""
        if self._sandboxes and self._top != "user":
            opening = asyncio.ensure_future(asyncio.to_thread(self._open))
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                await asyncio.wait([opening])
                self._let_go()
                self._stack.close()
                raise
        if self.reason is not None:
            _log.info("not every process can be named", rung=self.rung, reason=self.reason)
        if self._captured is not None:
            loop = asyncio.get_running_loop()
            for descriptor in self._captured.descriptors:
                loop.add_reader(descriptor, self._read)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the capture and the socket lookups. A lookup in progress ends without a result."""
        self._let_go()
        self._stack.close()

    async def keep(self, fell: Callable[[str], Awaitable[None]]) -> None:
        """See to it that the capture goes on; where it doesn't, step down and say why."""
        stood = self.rung
        while self.rung == "capture":
            await asyncio.sleep(_CHECK_SECONDS)
            await self._look_after()
        if stood == "capture":
            await fell(self.reason or "")

    async def _look_after(self) -> None:
        try:
            if self._captured is not None:
                self._captured.check()
        except UnsupportedError as error:
            self._lose(error)
        await self.take_in()

    async def attributions(
        self, sandbox: str, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        """Who sent the packets of some records, in the kernel's order.

        None of them was logged before ``since_ns`` (CLOCK_BOOTTIME).
        """
        if not records or sandbox not in self._sandboxes:
            return [_of_user(each, _NOT_ASKED_FOR) for each in records]
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        found = await self._from_capture(sandbox, records, since_ns, deadline)
        wanted = [
            number
            for number, (record, known) in enumerate(zip(records, found, strict=True))
            if _is_sent(record) and (known is None or known.sureness == "low")
        ]
        looked_up = await self._looked_up(sandbox, [records[each] for each in wanted], deadline)
        for number, result in zip(wanted, looked_up, strict=True):
            known = found[number]
            if isinstance(result, str):
                found[number] = known or _of_user(records[number], result)
            elif known is None or result.process is not None:
                found[number] = result
        told = [
            self._with_names(record, each or _NOBODY)
            for record, each in zip(records, found, strict=True)
        ]
        if self._names.wanted:
            await self._ask_for_names(deadline)
            told = [
                self._with_names(record, each) for record, each in zip(records, told, strict=True)
            ]
        return told

    def since_last(
        self, sandbox: str, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Who was seen to try what a record is of, since this was asked last.

        It is told of so many packets, by counters whose reading began at ``began_ns`` (epoch). None
        where nobody was, or nobody looks.
        """
        if self._captured is None or sandbox not in self._sandboxes:
            return None
        found = self._captured.since_last(sandbox, record, packets, began_ns)
        return None if found is None else self._with_names(record, found)

    def told(self, sandbox: str, record: Record, process: Process | None) -> None:
        """A packet was told by itself, as a process's or nobody's: it is none of those to come."""
        if self._captured is not None and sandbox in self._sandboxes:
            self._captured.told(sandbox, record, process)

    def of_user(self, record: Record) -> Attribution:
        """What is known of many packets that nobody was seen to send."""
        return self._with_names(record, _of_user(record, _NOT_SEEN))

    def _with_names(self, record: Record, found: Attribution) -> Attribution:
        return replace(
            found,
            user_name=None if record.uid is None else self._names.user(record.uid),
            group_name=None if record.gid is None else self._names.group(record.gid),
        )

    def _open(self) -> None:
        names = {}
        for name, namespace in self._sandboxes.items():
            with contextlib.suppress(OcsfNftError):  # the user is told
                lookup = self._stack.enter_context(SocketLookup(namespace, self._hashes))
                self._lookups[name] = lookup
        if self._top == "capture":
            try:
                names = {name: cookie(each) for name, each in self._sandboxes.items()}
                permissive = {names[each] for each in self._permissive if each in names}
                begun = self._begun(names.values(), permissive)
                self._captured = Captured(begun, names, self._names, permissive=permissive)
            except OcsfNftError as error:
                self.reason = str(error)

    def _begun(self, cookies: Collection[int], permissive: Collection[int]) -> Capture:
        """A capture that knows what processes are, or else one that only knows which they are."""
        try:
            return Capture(cookies, permissive=permissive)
        except UnsupportedError as error:
            self.reason = str(error)
            return Capture(cookies, permissive=permissive, knows_types=False)

    def _read(self) -> None:
        """There is much to be read."""
        try:
            if self._captured is not None:
                self._captured.take_in()
        except UnsupportedError as error:
            self._lose(error)

    def _lose(self, error: UnsupportedError) -> None:
        """Step down: the capture can't be read any more."""
        self._let_go()
        self.reason = str(error)
        _log.error("processes are not captured any more", reason=self.reason)

    def _let_go(self) -> None:
        self._lost = self.lost
        captured, self._captured = self._captured, None
        if captured is not None:
            for descriptor in captured.descriptors:
                asyncio.get_running_loop().remove_reader(descriptor)
            captured.close()

    async def take_in(self) -> None:
        """Read what has come; where there is no end of it, what was not read counts as lost."""
        for _ in range(_MOST_READS):
            try:
                if self._captured is None or not self._captured.take_in():
                    return
            except UnsupportedError as error:
                self._lose(error)
            await asyncio.sleep(0)
        if self._captured is not None:
            self._captured.lose()

    async def _from_capture(
        self, sandbox: str, records: Sequence[Record], since_ns: int, deadline: float
    ) -> list[Attribution | None]:
        captured = self._captured
        if captured is None:
            return [None] * len(records)
        # What comes in may bear the user of who is to get it.
        sent = [number for number, record in enumerate(records) if _is_sent(record)]
        asked = [records[number] for number in sent]
        await self.take_in()
        if await _is_late(captured, sandbox, asked):
            await asyncio.sleep(_LATER_SECONDS)
            await self.take_in()
        matches: list[Match | None] = []
        for match in captured.matches(sandbox, asked, since_ns):
            matches.append(match)
            if len(matches) % _SLICE == 0:
                await asyncio.sleep(0)

        async def tell() -> list[Named]:
            named = []
            for match in matches:
                named.append(captured.named(sandbox, match))
                if len(named) % _SLICE == 0:
                    await asyncio.sleep(0)
            return named

        told = await tell()
        if self._names.wanted:
            await self._ask_for_names(deadline)
            told = await tell()
        found = dict(zip(sent, await self._hashed(captured, told, deadline), strict=True))
        return [found.get(number) for number in range(len(records))]

    async def _hashed(
        self, captured: Captured, found: Sequence[Named], deadline: float
    ) -> list[Attribution | None]:
        """The same, with the hashes of the programs that are still there to be read."""
        told = [each.attribution for each in found]
        hashes = self._hashes
        if hashes is None:
            return told
        read: dict[Image, Process | None] = dict.fromkeys(
            each.image
            for each in found
            if each.image is not None and each.attribution and each.attribution.process
        )

        def read_all(until: float) -> None:
            for image in read:
                if time.monotonic() < until:
                    read[image] = procfs.read(image.pid, started_ns=image.started_ns, hashes=hashes)

        await self._in_thread(read_all, deadline)
        # Who has run another program meanwhile has told of it by now.
        await self.take_in()
        for number, (by, image) in enumerate(found):
            seen = None if image is None else read.get(image)
            if image is None or seen is None or by is None or by.process is None:
                continue
            # Of who has left the sandbox long ago another program may not have been told.
            if captured.is_latest(image) and seen.path == by.process.path:
                told[number] = replace(by, process=replace(by.process, sha256=seen.sha256))
        return told

    async def _in_thread(self, work: Callable[[float], None], deadline: float) -> None:
        """Have work done that may be held up; until the deadline, which it is told."""
        left = deadline - asyncio.get_running_loop().time()
        if left > 0 and (self._busy is None or self._busy.done()):
            until = time.monotonic() + left
            self._busy = asyncio.ensure_future(asyncio.to_thread(work, until))
            await asyncio.wait({self._busy}, timeout=left)

    async def _ask_for_names(self, deadline: float) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._names.ask))
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({self._asking}, timeout=left)

    async def _looked_up(
        self, sandbox: str, records: Sequence[Record], deadline: float
    ) -> list[Attribution | str]:
        """Who has the sockets now, or why nobody is named; as many as there is time for."""
        lookup = self._lookups.get(sandbox)
        found: list[Attribution | str] = [_TOO_LONG] * len(records)
        if lookup is None:
            return [_NOT_ASKED_FOR] * len(records)

        def look_up(until: float) -> None:
            for number, record in enumerate(records):
                began = time.monotonic()
                if began >= until:
                    return
                found[number] = lookup.attribution(record)
                self._credit.spend(time.monotonic() - began)

        if records and self._credit.has_some():
            await self._in_thread(look_up, deadline)
        return list(found)


async def _is_late(captured: Captured, sandbox: str, records: Sequence[Record]) -> bool:
    for begin in range(0, len(records), _SLICE):
        if begin:
            await asyncio.sleep(0)
        if captured.is_late(sandbox, records[begin : begin + _SLICE]):
            return True
    return False


def of_one_packet(known: Attribution) -> Attribution:
    """The same of many packets: of one of them it is known, of the others it is not."""
    if known.process is None:
        return known
    return replace(
        known, sureness="low", reason=_OF_ONE, process=None, seen=(Seen(process=known.process),)
    )


def _is_sent(record: Record) -> bool:
    return record.rule in _OF_PROCESSES and record.uid is not None


def _of_user(record: Record, reason: str) -> Attribution:
    if not _is_sent(record):
        return _NOBODY
    return Attribution(rung="user", sureness="high", reason=reason)
