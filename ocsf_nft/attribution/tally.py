"""Which processes were seen to try one flow, for what is told of many packets together."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.layout import NOBODY

if TYPE_CHECKING:
    from ocsf_nft.attribution.layout import Call, Image
    from ocsf_nft.record import Record

#: How long more of the same may not be told (``capture.bpf.c``: AGAIN).
_SILENCE_NS: Final = 500_000_000
#: Flows that are kept, and processes of each: who tries more fills no memory.
_FLOWS: Final = 2048
_PROCESSES: Final = 32


class Where(NamedTuple):
    """What somebody tries, and as which user; nothing but the user, of frames."""

    uid: int
    protocol: int | None = None
    destination: bytes = b""
    port: int = 0


class _Latest(NamedTuple):
    call: Call
    times: int


class Tried(NamedTuple):
    """The latest call of each process, and how often it was told.

    ``unnamed`` is how many more processes there were, at least. ``is_silent``: some of it was not
    told.
    """

    calls: tuple[tuple[Call, int], ...] = ()
    unnamed: int = 0
    is_silent: bool = False


class _Flow:
    """The processes that try one flow, who called last at the end."""

    __slots__ = ("latest", "silent_ns", "unnamed", "youngest_ns")

    def __init__(self) -> None:
        self.latest: OrderedDict[Image, _Latest] = OrderedDict()
        self.unnamed = 0
        #: When the youngest of all was started.
        self.youngest_ns = 0
        #: Until when some may not be told.
        self.silent_ns = 0

    def add(self, call: Call) -> None:
        if call.has_more:
            self.silent_ns = call.time_ns + _SILENCE_NS
        image = call.image
        before = self.latest.pop(image, None)
        if before is None and len(self.latest) >= _PROCESSES:
            self.latest.popitem(last=False)
            # Any other one may be one of those that are gone.
            if self.unnamed == 0 or image.started_ns > self.youngest_ns:
                self.unnamed += 1
        if before is not None and before.call.tid != call.tid:
            call = call._replace(tid=0)  # several threads of it
        self.latest[image] = _Latest(call, 1 if before is None else before.times + 1)
        self.youngest_ns = max(self.youngest_ns, image.started_ns)


class Tally:
    """The processes of the latest flows."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Where, _Flow] = OrderedDict()

    def add(self, call: Call) -> None:
        """Take in a call."""
        if call.is_connect or call.is_any or call.image == NOBODY:
            return
        where = Where(call.owner, call.protocol, call.destination, call.destination_port)
        if call.is_frame:
            where = Where(call.owner)
        if where not in self._flows:
            self._flows[where] = _Flow()
        self._flows[where].add(call)
        self._flows.move_to_end(where)
        while len(self._flows) > _FLOWS:
            self._flows.popitem(last=False)

    def take(self, where: Where, now_ns: int) -> Tried:
        """Who has tried it since this was asked last, until now (CLOCK_BOOTTIME)."""
        flow = self._flows.pop(where, None)
        if flow is None:
            return Tried()
        if flow.silent_ns > now_ns:
            # What is silent now is counted later.
            rest = self._flows[where] = _Flow()
            rest.silent_ns = flow.silent_ns
        calls = tuple((each.call, each.times) for each in flow.latest.values())
        return Tried(calls, flow.unnamed, is_silent=flow.silent_ns > 0)

    def take_one(self, where: Where, pid: int) -> None:
        """One try of a process was told by itself."""
        flow = self._flows.get(where) or _Flow()
        for image, latest in list(flow.latest.items()):
            if image.pid == pid:
                if latest.times > 1:
                    flow.latest[image] = latest._replace(times=latest.times - 1)
                else:
                    del flow.latest[image]
                return


def where_of(record: Record) -> Where | None:
    """What a record is of; None where no user's process has sent it."""
    if record.uid is None:
        return None
    if record.protocol is None or record.destination is None:
        return Where(record.uid)
    destination = ipaddress.ip_address(record.destination).packed
    return Where(record.uid, record.protocol, destination, record.destination_port or 0)
