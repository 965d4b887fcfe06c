"""Which processes were seen to try one flow, for what is told of many packets together."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.bpf_layout import NOBODY
from ocsf_nft.attribution.call_match import OF_FRAMES
from ocsf_nft.ip_text import packed

if TYPE_CHECKING:
    from ocsf_nft.attribution.bpf_layout import Call, Image
    from ocsf_nft.record import Record

#: Flows that are kept, and processes of each: who tries more fills no memory.
_FLOWS: Final = 2048
_PROCESSES: Final = 32
#: Of the latest calls it is kept when they were.
_RECENT: Final = 64


class Where(NamedTuple):
    """What somebody tries, and as which user."""

    uid: int
    protocol: int
    destination: bytes
    port: int


class _Latest(NamedTuple):
    call: Call
    times: int


class Tried(NamedTuple):
    """The latest call of each process, and how often it was told.

    ``unnamed`` is how many more processes there were, at least. ``is_mixed``: some of it may be of
    packets that were told by themselves, or were counted before or after.
    """

    calls: tuple[tuple[Call, int], ...] = ()
    unnamed: int = 0
    is_mixed: bool = False


class _Flow:
    """The processes that try one flow, who called last at the end."""

    __slots__ = ("is_mixed", "latest", "recent", "unnamed", "youngest_ns")

    def __init__(self) -> None:
        self.latest: OrderedDict[Image, _Latest] = OrderedDict()
        self.recent: deque[Call] = deque(maxlen=_RECENT)
        self.unnamed = 0
        #: When the youngest of all was started.
        self.youngest_ns = 0
        self.is_mixed = False

    def add(self, call: Call) -> None:
        image = call.image
        self.recent.append(call)
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

    def take_one(self, image: Image) -> None:
        latest = self.latest.get(image)
        if latest is not None and latest.times > 1:
            self.latest[image] = latest._replace(times=latest.times - 1)
        else:
            self.latest.pop(image, None)
        told = next((each for each in reversed(self.recent) if each.image == image), None)
        if told is not None:
            self.recent.remove(told)

    def after(self, began_ns: int, ended_ns: int) -> _Flow:
        """What was called after a reading of the counters began, taken off this."""
        rest = _Flow()
        later = [each for each in self.recent if each.time_ns > began_ns]
        if len(later) == _RECENT:  # and more than those
            self.is_mixed = rest.is_mixed = True
        # Those in the middle of it may have been counted.
        rest.is_mixed |= any(each.time_ns <= ended_ns for each in later)
        for call in later:
            self.take_one(call.image)
            rest.add(call)
        return rest


class Tally:
    """The processes of the latest flows."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Where, _Flow] = OrderedDict()

    def add(self, call: Call) -> None:
        """Take in a call."""
        if call.is_connect or call.is_any or call.is_frame or call.image == NOBODY:
            return
        self._flow(Where(call.owner, call.protocol, call.destination, call.destination_port)).add(
            call
        )

    def _flow(self, where: Where) -> _Flow:
        found = self._flows.get(where)
        if found is not None:
            self._flows.move_to_end(where)
            return found
        found = self._flows[where] = _Flow()
        while len(self._flows) > _FLOWS:
            self._flows.popitem(last=False)
        return found

    def take(self, where: Where, began_ns: int, ended_ns: int) -> Tried:
        """Who has tried it since this was asked last, as far as the counters tell.

        They were read from ``began_ns`` to ``ended_ns`` (CLOCK_BOOTTIME).
        """
        flow = self._flows.pop(where, None)
        if flow is None:
            return Tried()
        rest = flow.after(began_ns, ended_ns)
        if rest.latest:
            self._flows[where] = rest
        calls = tuple((each.call, each.times) for each in flow.latest.values())
        return Tried(calls, flow.unnamed, flow.is_mixed)

    def take_one(self, where: Where, pid: int | None) -> None:
        """One try was told by itself, as a process's or nobody's."""
        flow = self._flow(where)
        image = next((each for each in flow.latest if each.pid == pid), None)
        if image is None:
            flow.is_mixed = True
            return
        flow.take_one(image)
        if not flow.latest and not flow.unnamed and not flow.is_mixed:
            # All calls of the flow are reported. It must not evict a flow with unreported calls.
            del self._flows[where]


def where_of(record: Record) -> Where | None:
    """What a record is of; None where no user's process has sent it, and of frames.

    Frames are counted by what they say they are, which is not what they are told as.
    """
    if record.uid is None or record.rule in OF_FRAMES:
        return None
    destination = packed(record.destination)
    if record.protocol is None or destination is None:
        return None
    return Where(record.uid, record.protocol, destination, record.destination_port or 0)
