"""The attempts of one rule: from what is owed to what is told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.accounting.schedule import OVER_NS, Schedule
from ocsf_nft.attempt import Attempt, Merged
from ocsf_nft.record import PREFIX_ROOT, Origin, Record

if TYPE_CHECKING:
    from ocsf_nft.accounting.counted import Counted
    from ocsf_nft.attempt import Merger
    from ocsf_nft.flow import Flow, Key

_SAMPLE: Final = 10
_IP: Final[dict[int | None, Literal[4, 6]]] = {0x0800: 4, 0x86DD: 6}


class Telling:
    """What is being told: when the next time is due, and the record that stands for it."""

    __slots__ = ("begun_ns", "is_new", "record", "schedule")

    def __init__(self, begun_ns: int, record: Record | None = None) -> None:
        self.begun_ns = begun_ns
        self.record = record
        #: Whether the record has not been told yet.
        self.is_new = record is not None
        self.schedule: Schedule | None = None

    def logged(self, record: Record) -> None:
        """Let a later record stand for it."""
        self.record = record
        self.is_new = True

    def is_due(self, now_ns: int, last_ns: int) -> bool:
        """Whether to tell what is owed, the last of which is from ``last_ns``."""
        return self.schedule is None or self.schedule.is_due(now_ns, last_ns)

    def is_over(self, now_ns: int, last_ns: int) -> bool:
        """Whether nothing came for so long that the next packet begins a new attempt."""
        if self.schedule is None:
            return now_ns - max(last_ns, self.begun_ns) >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def told(self, now_ns: int) -> None:
        """It has been told of."""
        self.is_new = False
        if self.schedule is None:
            self.schedule = Schedule(now_ns)
        else:
            self.schedule.told(now_ns)


class Pot:
    """What is told together: how much is owed, of how many flows, some of which are named."""

    __slots__ = ("counted", "flows", "sample", "telling")

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.flows = 0
        self.sample: list[Flow] = []
        self.telling = Telling(counted.since_ns)

    def add(self, flow: Flow) -> None:
        """One more flow is told with the others."""
        self.flows += 1
        if len(self.sample) < _SAMPLE:
            self.sample.append(flow)

    def merged(self, why: Merger) -> Merged:
        """What to say of it; the flows that are told next are counted anew."""
        merged = Merged(why=why, flows=self.flows or None, sample=tuple(self.sample))
        self.flows = 0
        self.sample = []
        return merged


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where attempts are counted: the rule of a sandbox, and which counters these are."""

    sandbox: str
    rule: str
    epoch: str

    def attempt(  # noqa: PLR0913 - what is told, and in whose words
        self,
        counted: Counted,
        key: Key | None,
        flow: Flow,
        *,
        packets: int,
        number: int,
        now_ns: int,
        specimen: Record | None = None,
        merged: Merged | None = None,
    ) -> Attempt:
        """What a counter owes, as one attempt, taken off it.

        ``packets`` is how many; ``number`` how many of the rule were told before, which is another
        one for each attempt.
        """
        octets = max(counted.owed_bytes, 0)
        start_ns, end_ns = min(counted.since_ns, counted.last_ns), counted.last_ns
        counted.told(packets, octets)
        counted.since_ns = end_ns
        where = self.rule if key is None else f"{key.kind}_{self.rule}"
        record = Record(
            prefix=f"{PREFIX_ROOT}{self.sandbox}:{self.rule}:",
            sandbox=self.sandbox,
            rule=self.rule,
            in_interface=None if specimen is None else specimen.in_interface,
            out_interface=None if specimen is None else specimen.out_interface,
            source=None if specimen is None else specimen.source,
            ethertype=flow.ethertype if flow.ethertype not in _IP else None,
            ip_version=_version(key, flow),
            destination=flow.destination,
            destination_port=flow.port,
            protocol=flow.protocol,
            uid=flow.uid,
            time_ns=end_ns,
            received_ns=now_ns,
            origin=Origin(
                transport="counters",
                identity=f"{self.epoch}/{self.rule}/{number}",
                log_source=f"nftables {where}",
                log_format="nf_tables",
                raw=f"{where} {{ {_words(flow)} counter packets {packets} bytes {octets} }}",
            ),
        )
        return Attempt(
            record=record,
            packets=packets,
            bytes=octets,
            start_ns=start_ns,
            end_ns=end_ns,
            merged=merged,
        )


def _version(key: Key | None, flow: Flow) -> Literal[4, 6] | None:
    if key is None:
        return None
    if key.kind == "others":
        return _IP.get(flow.ethertype)
    return 4 if key.kind == "flows4" else 6


def _words(flow: Flow) -> str:
    """A key as nft would print it; what it hasn't got is left out."""
    parts = (flow.uid, flow.ethertype, flow.protocol, flow.destination, flow.port)
    return " . ".join(str(part) for part in parts if part is not None)
