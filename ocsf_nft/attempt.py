"""What the records and the counters come to: attempts, and who makes too many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from ocsf_nft.flow import Flow
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import Record, Verdict

#: Why packets of several flows are told together. ``many``: one user has more flows than are told
#: one by one. ``without_slot``: they found no place in the kernel's sets of flows. ``forgotten``: the
#: kernel forgot the flows before anybody had read their counts.
AggregationReason: TypeAlias = Literal["many", "unplaced", "forgotten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Several flows told as one: why, how many there are (None: nobody knows), and some of them."""

    reason: AggregationReason
    flows: int | None = None
    sample: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """The attempts of one flow that followed one another without a pause, up to one of them.

    ``identity`` is the same for all of them. They are ``windows`` attempts of ``packets`` packets
    since ``start_ns`` (since the epoch, UTC). With the ``found_at``-th of them they came to
    something that is a finding; None as long as they do not. ``latest`` are the identities of the
    records of the latest ones, that of the last one last. ``attribution`` is who made all of them;
    None where nobody has looked.
    """

    identity: str
    windows: int
    packets: int
    found_at: int | None
    start_ns: int
    latest: tuple[str, ...]
    attribution: Attribution | None = None

    @property
    def process(self) -> Process | None:
        """The process that made all of them; None where nobody knows, or there was no such one."""
        return None if self.attribution is None else self.attribution.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What somebody tried, in one window: each packet is in one attempt and in no other.

    ``record`` stands for it: what the kernel logged of its first packet or, where it logged none,
    what its counter says; ``packets`` and ``bytes`` are exact, ``bytes`` None where nobody counted
    them. No packet is from before ``start_ns`` or from after ``end_ns`` (since the epoch, UTC).
    ``incident`` is what it goes on with; None where nobody keeps count of that. ``attribution`` is
    who did it; None where nobody has looked.
    """

    record: Record
    packets: int
    bytes: int | None
    start_ns: int
    end_ns: int
    aggregation: Aggregation | None = None
    streak: Incident | None = None
    attribution: Attribution | None = None

    @property
    def process(self) -> Process | None:
        """The process that did it; None where nobody knows, or not which of several."""
        return None if self.attribution is None else self.attribution.process

    @staticmethod
    def of(record: Record, attribution: Attribution | None = None) -> Attempt:
        """The attempt that one record is."""
        return Attempt(
            record=record,
            packets=1,
            bytes=record.length,
            start_ns=record.time_ns,
            end_ns=record.time_ns,
            attribution=attribution,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentEnd:
    """A streak is over: nothing came of its flow for a while, or nobody reads any more.

    ``record`` is as in :class:`Attempt`; ``end_ns`` is the end of its last one.
    """

    record: Record
    streak: Incident
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """One user tries many destinations or ports within a short time.

    ``verdict`` is as in the records of the rule: ``permit`` where a permissive fence let it pass.
    ``identity`` is the same for all that is told of it, from ``begun`` to ``ended``. The numbers
    are what it came to so far, and at least so many: ``flows`` distinct flows, to ``destinations``
    addresses and ``ports`` ports, by ``packets``. ``sample`` are some of them. Times as in
    :class:`Attempt`.
    """

    identity: str
    stage: Literal["begun", "goes on", "ended"]
    sandbox: str
    rule: str
    verdict: Verdict | None = None
    uid: int | None
    flows: int
    destinations: int
    ports: int
    packets: int
    sample: tuple[Flow, ...]
    start_ns: int
    end_ns: int


#: Former names, still imported by ``tests/golden``.
Streak = Incident
Ended = IncidentEnd
