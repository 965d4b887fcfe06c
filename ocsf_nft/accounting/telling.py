"""The attempts of one rule: from what is owed to what is told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.accounting.quota import Quota
from ocsf_nft.accounting.schedule import OVER_NS, Schedule
from ocsf_nft.attempt import Attempt, Merged
from ocsf_nft.flow import flow
from ocsf_nft.record import PREFIX_ROOT, Origin, Record

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.accounting.counted import Counted
    from ocsf_nft.attempt import Merger
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.record import Detail

_SAMPLE: Final = 10
#: Attempts that have events of their own at the same time.
_TELLINGS: Final = 4000
_KINDS: Final = ("icmp_type", "icmp_code", "arp", "fragment_offset", "more_fragments")
#: Two readings and more, when they are not hard to make.
_YOUNG_NS: Final = 2 * 1_000_000_000
#: A reading takes no longer (``fence.counters``), or hardly.
_READ_NS: Final = 12 * 1_000_000_000
_IP: Final[dict[int | None, Literal[4, 6]]] = {0x0800: 4, 0x86DD: 6}


class Telling:
    """What is being told: when the next time is due, and the record that stands for it.

    Its moments are of a clock of their own: who sets the machine's can't keep it from being told.
    """

    __slots__ = ("_grew_ns", "_is_growing", "is_new", "record", "schedule")

    def __init__(self, begun_ns: int | None = None, record: Record | None = None) -> None:
        #: When there was last more of it; known when it is next asked for.
        self._grew_ns = begun_ns
        self._is_growing = False
        self.record = record
        #: Whether the record has not been told yet.
        self.is_new = record is not None
        self.schedule: Schedule | None = None

    @property
    def is_unheard(self) -> bool:
        """Whether no record came of it, and nothing has been told."""
        return self.record is None and self.schedule is None

    def is_young(self, now_ns: int) -> bool:
        """Whether a record that was told may still turn out to be of it."""
        begun_ns = self._grew_ns
        return self.is_unheard and begun_ns is not None and now_ns - begun_ns < _YOUNG_NS

    def logged(self, record: Record) -> None:
        """Let a later record stand for it."""
        self.record = record
        self.is_new = True
        self.grew()

    def grew(self) -> None:
        """There is more of it."""
        self._is_growing = True

    def is_due(self, now_ns: int) -> bool:
        """Whether to tell what is owed."""
        return self.schedule is None or self.schedule.is_due(now_ns, self._last_ns(now_ns))

    def is_over(self, now_ns: int) -> bool:
        """Whether nothing came for so long that the next packet begins a new attempt."""
        last_ns = self._last_ns(now_ns)
        if self.schedule is None:
            return now_ns - last_ns >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def told(self, now_ns: int) -> None:
        """It has been told of."""
        self.is_new = False
        if self.schedule is None:
            self.schedule = Schedule(now_ns)
        else:
            self.schedule.told(now_ns)

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns


class Tellings(dict["Key", Telling]):
    """What is told by itself, and who may have more of that: a record is kept of each."""

    def __init__(self, always: frozenset[str]) -> None:
        """``always`` are destinations that are told by themselves however many there are."""
        super().__init__()
        self._always = always
        self._quota = Quota()

    def take(self, uid: int | None, destination: str | None, now_ns: int) -> bool:
        """Whether one more flow of a user is told by itself, and not with its others."""
        if destination in self._always:
            return True
        return len(self) < _TELLINGS and self._quota.grants(uid, now_ns)

    def forget_what_is_over(self, owing: AbstractSet[Key], now_ns: int) -> None:
        """The next packet of what is over begins something new."""
        for key in [key for key, each in self.items() if key not in owing and each.is_over(now_ns)]:
            del self[key]


class Pot:
    """What is told together: how much is owed, of how many flows, some of which are named."""

    __slots__ = ("counted", "flows", "sample", "telling")

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.flows = 0
        self.sample: list[Flow] = []
        self.telling = Telling()

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
        read_ns: int,
        specimen: Record | None = None,
        merged: Merged | None = None,
    ) -> Attempt:
        """What a counter owes, as one attempt, taken off it.

        ``packets`` is how many; ``number`` how many of the rule were told before, which is another
        one for each attempt; ``read_ns`` when it was read.
        """
        octets = max(counted.owed_bytes, 0)
        start_ns, end_ns = _window(counted)
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
            tcp_flags=None if specimen is None else specimen.tcp_flags,
            details={} if specimen is None else _told_of_all(specimen),
            time_ns=end_ns,
            received_ns=read_ns,
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


def is_unplaced(key: Key) -> bool:
    """Whether an element holds the packets of flows that found no place of their own."""
    return key.kind == "others" and flow(key).ethertype in _IP


def _window(counted: Counted) -> tuple[int, int]:
    """From when to when the packets are that it owes: not before those that were told."""
    since_ns, last_ns = counted.since_ns, counted.last_ns
    if last_ns >= since_ns:
        return since_ns, last_ns
    # Both are the latest moments that can be, to some seconds; else the clock was set back.
    return (since_ns, since_ns) if since_ns - last_ns < _READ_NS else (last_ns, last_ns)


def _told_of_all(specimen: Record) -> dict[str, Detail]:
    """What decides of a packet what it is, and what became of it: the key doesn't tell."""
    return {name: specimen.details[name] for name in _KINDS if name in specimen.details}


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
