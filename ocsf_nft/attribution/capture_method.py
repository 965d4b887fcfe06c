"""The rung ``capture``: what the capture has told, by sandbox, and what that says of a record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import clocks
from ocsf_nft.attribution.bpf_layout import Call, Closed, Portrait
from ocsf_nft.attribution.call_match import Logged
from ocsf_nft.attribution.flow_processes import Tally, where_of
from ocsf_nft.attribution.process_snapshots import Images
from ocsf_nft.attribution.refused_packets import Refusals
from ocsf_nft.attribution.send_calls import Calls
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ocsf_nft.attribution.bpf_capture import Capture, Lost
    from ocsf_nft.attribution.bpf_layout import Image
    from ocsf_nft.attribution.call_match import Match
    from ocsf_nft.attribution.user_names import KeptNames
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

_SENT: Final = "the kernel saw it send the packet"
_SEVERAL: Final = "the kernel saw each of them send what may be the packet"
_CALLED: Final = "the kernel saw it make a call that the packet may be of"
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
    """What was told of one network namespace: packets that were refused, or else calls."""

    def __init__(self, *, is_refused: bool) -> None:
        self.told: Refusals | Calls = Refusals() if is_refused else Calls()
        self.is_refused = is_refused
        self.tally = Tally()


class Captured:
    """Takes in what a capture tells, and says who sent what.

    ``sandboxes`` are the kernel's numbers of their network namespaces, by name. Those whose fences
    refuse nothing are ``permissive``: their packets are not told of one by one, calls are.
    """

    def __init__(
        self,
        capture: Capture,
        sandboxes: Mapping[str, int],
        names: KeptNames,
        *,
        permissive: Collection[int] = (),
    ) -> None:
        self._capture = capture
        self._images = Images(names)
        self._by_netns = {
            number: _Sandbox(is_refused=capture.knows_types and number not in permissive)
            for number in sandboxes.values()
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
        told, has_more = self._capture.read()
        lost = self._capture.lost()
        if lost.calls > self.lost.calls:
            self.lose()
        if lost.processes > self.lost.processes:
            self._images.lose()
        self.lost = lost
        for event in told:
            self._take_in(event)
        return has_more

    def lose(self) -> None:
        """Some calls before now are not known."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for each in self._by_netns.values():
            each.told.lose(now_ns)

    def _take_in(self, told: Call | Closed | Portrait) -> None:
        if isinstance(told, Portrait):
            self._images.learn(told)
        elif isinstance(told, Call):
            sandbox = self._by_netns.get(told.netns)
            if sandbox is not None:
                sandbox.told.add(told)
                sandbox.tally.add(told)
        else:
            # Cookies of sockets are the machine's: no two namespaces have the same.
            for sandbox in self._by_netns.values():
                if isinstance(sandbox.told, Calls):
                    sandbox.told.close(told)

    def is_late(self, sandbox: str, records: Sequence[Record]) -> bool:
        """Whether who sent the packet of one of these is still to be told."""
        told = self._by_name[sandbox].told
        return isinstance(told, Refusals) and told.is_late(_logged(records, 0))

    def matches(
        self, sandbox: str, records: Sequence[Record], since_ns: int
    ) -> Iterator[Match | None]:
        """What the packets of some records may be of, in the kernel's order.

        Each is asked for once. None of them was logged before ``since_ns`` (boottime). All that has
        come is to be taken in before.
        """
        began_ns = self._began_ns + _booted_ns()
        is_refused = self._by_name[sandbox].is_refused
        for record, match in zip(
            records, self._by_name[sandbox].told.matches(_logged(records, since_ns)), strict=True
        ):
            # Of a log that is read on, and of what was let pass where that is not told.
            is_before = record.time_ns < began_ns
            is_other = is_refused and record.verdict == "permit"
            yield None if is_before or is_other else match

    def named(self, sandbox: str, match: Match | None) -> Named:
        """Who sent a packet that was matched so."""
        if match is None:
            return Named(None)
        is_refused = self._by_name[sandbox].is_refused
        return Named(self._of_match(match, is_refused=is_refused), match.calls[0].image)

    def is_latest(self, image: Image) -> bool:
        """Whether a process is known to have run nothing else until now."""
        return self._images.is_latest(image)

    def since_last(
        self, sandbox: str, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Who has tried what a record is of since this was asked last; None where nobody was seen.

        The ``packets`` are what the counters said, whose reading began at ``began_ns`` (epoch) and
        ended when the record was made. One process is named where each of them is a packet of it
        that was seen: somebody else's was none of those then.
        """
        where = where_of(record)
        if where is None:
            return None
        tried = self._by_name[sandbox]
        booted_ns = _booted_ns()
        calls, unnamed, is_mixed = tried.tally.take(
            where, began_ns - booted_ns, record.received_ns - booted_ns
        )
        if not calls:
            return None
        seen = tuple(Seen(process=self._images.process(call), calls=times) for call, times in calls)
        times = sum(times for _, times in calls)
        is_all = tried.is_refused and times == packets and not unnamed and not is_mixed
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

    def told(self, sandbox: str, record: Record, process: Process | None) -> None:
        """A packet was told by itself, as a process's or nobody's."""
        where = where_of(record)
        if where is not None:
            pid = None if process is None else process.pid
            self._by_name[sandbox].tally.take_one(where, pid)

    def _of_match(self, match: Match, *, is_refused: bool) -> Attribution:
        processes = [self._images.process(call) for call in match.calls]
        if match.is_sender and len(processes) == 1:
            return Attribution(
                rung="capture",
                sureness="high" if is_refused else "medium",
                reason=_SENT if is_refused else _CALLED,
                process=processes[0],
                sent_ns=match.calls[0].time_ns + _booted_ns() if is_refused else None,
            )
        is_seen = match.is_sender and is_refused
        return Attribution(
            rung="capture",
            sureness="medium" if is_seen else "low",
            reason=_SEVERAL if is_seen else _HAD,
            seen=tuple(Seen(process=each) for each in processes),
        )


def _logged(records: Sequence[Record], since_ns: int) -> list[Logged]:
    booted_ns, now_ns = _booted_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    logged = []
    for record in records:
        # The clock may have been set since it was read.
        until_ns = min(record.received_ns - booted_ns, now_ns)
        stamp_ns = min(record.time_ns - booted_ns, until_ns)
        logged.append(Logged(record, since_ns, until_ns, stamp_ns))
    return logged


def _booted_ns() -> int:
    return clocks.epoch_of(time.CLOCK_BOOTTIME)
