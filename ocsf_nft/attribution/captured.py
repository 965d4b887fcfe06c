"""The rung ``capture``: what the capture has told, by sandbox, and what that says of a record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.calls import Calls
from ocsf_nft.attribution.images import Images
from ocsf_nft.attribution.layout import Call, Closed, Portrait
from ocsf_nft.attribution.tally import Tally, where_of
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.attribution.calls import Match, Moment
    from ocsf_nft.attribution.capture import Capture, Lost
    from ocsf_nft.attribution.layout import Image
    from ocsf_nft.attribution.users import KeptNames
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

_SENT: Final = "the kernel saw it send the packet"
_SEVERAL: Final = "several processes sent such a packet from the same port within a moment"
_HAD: Final = (
    "it had a socket that the packet may be of, and others may have had that too, or calls were "
    "made that there was no room to tell of"
)
_TRIED: Final = "the kernel saw it send each of the packets"
_ALL_TRIED: Final = "the kernel saw them send the packets"
_SOME_TRIED: Final = "the kernel saw them try this since it was last told of, and maybe not all"


class Named(NamedTuple):
    """What is known of who sent something; ``image`` is what ran, where that is one."""

    attribution: Attribution | None
    image: Image | None = None


class _Sandbox:
    """What is known of the calls in one network namespace."""

    def __init__(self, *, sees_refusals: bool) -> None:
        self.calls = Calls(sees_refusals=sees_refusals)
        self.tally = Tally()


class Captured:
    """Takes in what a capture tells, and says who sent what.

    ``sandboxes`` are the kernel's numbers of their network namespaces, by name.
    """

    def __init__(self, capture: Capture, sandboxes: Mapping[str, int], names: KeptNames) -> None:
        self._capture = capture
        self._images = Images(names)
        self._by_netns = {
            number: _Sandbox(sees_refusals=capture.knows_types) for number in sandboxes.values()
        }
        self._by_name = {name: self._by_netns[number] for name, number in sandboxes.items()}
        self.lost: Lost = capture.lost()
        self._began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """As those of a :class:`Capture`."""
        return self._capture.descriptors

    def check(self) -> None:
        """Raise UnsupportedError when nothing is captured any more."""
        self._capture.check()

    def close(self) -> None:
        """Capture no more."""
        self._capture.close()

    def take_in(self) -> bool:
        """Read some of what has come; whether there may be more.

        Some milliseconds of work at most. Raises UnsupportedError when it can't be read any more.
        """
        told = self._capture.read()
        lost = self._capture.lost()
        if lost.calls > self.lost.calls:
            self.lose()
        self.lost = lost
        for event in told:
            self._take_in(event)
        return bool(told)

    def lose(self) -> None:
        """Some calls before now are not known."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for each in self._by_netns.values():
            each.calls.lose(now_ns)

    def _take_in(self, told: Call | Closed | Portrait) -> None:
        if isinstance(told, Portrait):
            self._images.learn(told)
        elif isinstance(told, Call):
            sandbox = self._by_netns.get(told.netns)
            if sandbox is not None:
                sandbox.calls.add(told)
                sandbox.tally.add(told)
        else:
            # Cookies of sockets are the machine's: no two namespaces have the same.
            for sandbox in self._by_netns.values():
                sandbox.calls.add(told)

    def moments(self, sandbox: str, records: Sequence[Record]) -> list[Moment]:
        """When the packet of each record was sent, as :meth:`Calls.moments` has it.

        All that has come is to be taken in before.
        """
        booted_ns, now_ns = _booted_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return self._by_name[sandbox].calls.moments(records, booted_ns, now_ns)

    def named(self, sandbox: str, record: Record, moment: Moment) -> Named:
        """Who sent the packet of a record then."""
        if record.time_ns - _booted_ns() < self._began_ns:  # of a log that was read on
            return Named(None)
        match = self._by_name[sandbox].calls.match(record, moment)
        if match is None:
            return Named(None)
        return Named(self._of_match(match), match.calls[0].image)

    def is_latest(self, image: Image) -> bool:
        """Whether a process is known to have run nothing else until now."""
        return self._images.is_latest(image)

    def since_last(self, sandbox: str, record: Record, packets: int) -> Attribution | None:
        """Who has tried what a record is of since this was asked last; None where nobody was seen.

        One process is named where each of the ``packets`` is a call of it that was seen: somebody
        else's was none of those then.
        """
        where = where_of(record)
        if where is None:
            return None
        calls, unnamed = self._by_name[sandbox].tally.take(where)
        if not calls:
            return None
        seen = tuple(Seen(process=self._images.process(call), calls=times) for call, times in calls)
        times = sum(times for _, times in calls)
        is_all = times == packets and not unnamed
        if where.protocol is None and not is_all:
            return None  # they may have sent other frames than these
        if is_all and len(seen) == 1:
            process = seen[0].process
            return Attribution(rung="capture", sureness="high", reason=_TRIED, process=process)
        return Attribution(
            rung="capture",
            sureness="high" if is_all else "medium",
            reason=_ALL_TRIED if is_all else _SOME_TRIED,
            seen=seen,
            unnamed=unnamed,
        )

    def told(self, sandbox: str, record: Record, process: Process) -> None:
        """A packet was told by itself, as a process's."""
        where = where_of(record)
        if where is not None:
            self._by_name[sandbox].tally.take_one(where, process.pid)

    def _of_match(self, match: Match) -> Attribution:
        processes = [self._images.process(call) for call in match.calls]
        if match.is_sender and len(processes) == 1:
            return Attribution(rung="capture", sureness="high", reason=_SENT, process=processes[0])
        return Attribution(
            rung="capture",
            sureness="medium" if match.is_sender else "low",
            reason=_SEVERAL if match.is_sender else _HAD,
            seen=tuple(Seen(process=each) for each in processes),
        )


def _booted_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
