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
    from ocsf_nft.process import Sureness
    from ocsf_nft.record import Record

_SENT: Final = "the kernel saw it send the packet"
_SEVERAL: Final = "several processes sent such a packet from the same port within a moment"
_HAD: Final = (
    "it had a socket that the packet may be of, and others may have had that too, or calls were "
    "made that there was no room to tell of"
)
_TRIED: Final = "the kernel saw it try this since it was last told of"
_ALL_TRIED: Final = "the kernel saw each of them try this since it was last told of"


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
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for each in self._by_netns.values():
                each.calls.lose(now_ns)
        self.lost = lost
        for event in told:
            self._take_in(event)
        return bool(told)

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
        match = self._by_name[sandbox].calls.match(record, moment)
        if match is None:
            return Named(None)
        return Named(self._of_match(match), match.calls[0].image)

    def is_latest(self, image: Image) -> bool:
        """Whether a process is known to have run nothing else until now."""
        return self._images.is_latest(image)

    def since(self, sandbox: str, record: Record, since_ns: int) -> Attribution | None:
        """Who has tried what a record is of since a moment (epoch, UTC).

        None where nobody was seen to. Each call is told once.
        """
        where = where_of(record)
        if where is None:
            return None
        since_boot_ns = since_ns - _booted_ns()
        tried = self._by_name[sandbox].tally.take(where, since_boot_ns)
        if not tried.calls:
            return None
        seen = tuple(
            Seen(process=self._images.process(call), calls=times) for call, times in tried.calls
        )
        # All that is refused is seen, but for what there was no room to tell of.
        is_all = self._by_name[sandbox].calls.sees_all(record, since_boot_ns)
        sureness: Sureness = "high" if is_all else "medium"
        if len(seen) == 1 and not tried.unnamed:
            return Attribution(
                rung="capture", sureness=sureness, reason=_TRIED, process=seen[0].process
            )
        return Attribution(
            rung="capture",
            sureness=sureness,
            reason=_ALL_TRIED,
            seen=seen,
            unnamed=tried.unnamed,
        )

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
