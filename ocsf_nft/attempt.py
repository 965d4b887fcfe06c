"""Attempts and incidents: made from log records and kernel counters, and mapped to OCSF events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from ocsf_nft.flow import Flow
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import Record, Verdict

#: Reason why packets of several flows are aggregated. ``many``: one user has more flows than are
#: reported separately. ``unplaced``: the flows found no free slot in the kernel's sets.
#: ``evicted``: the kernel evicted the flows before their counts were read.
AggregationReason: TypeAlias = Literal["many", "unplaced", "evicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Description of several flows that are reported as one attempt, and the ``reason`` for this.

    ``flows`` is the number of these flows (None: unknown), and ``sample`` has some of these flows.
    """

    reason: AggregationReason
    flows: int | None = None
    sample: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Successive attempts of one flow without a pause; a significant incident becomes a finding.

    This is the state up to the latest attempt. ``identity`` is the same for all attempts. The
    incident has ``windows`` attempts with ``packets`` packets since ``start_ns`` (since the epoch,
    UTC). The incident became a finding with attempt number ``found_at``; None if it is no finding
    yet. ``latest`` has the identities of the latest attempts' records, oldest first.
    ``attribution`` is valid for all attempts together; None if no attempt was attributed.
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
        """Return the process that made all attempts; None if unknown, or if there were several."""
        return None if self.attribution is None else self.attribution.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Packets of one flow in one time window; each packet belongs to exactly one attempt.

    ``record`` describes the attempt. It is the kernel's log record of the first packet. If the
    kernel logged none, it is a record made from the counter. ``packets`` and ``bytes`` are exact;
    ``bytes`` is None if the bytes were not counted. No packet is from before ``start_ns`` or after
    ``end_ns`` (since the epoch, UTC). ``incident`` is None if incidents are not tracked.
    ``attribution`` is None if the attempt was not attributed.
    """

    record: Record
    packets: int
    bytes: int | None
    start_ns: int
    end_ns: int
    aggregation: Aggregation | None = None
    incident: Incident | None = None
    attribution: Attribution | None = None

    @property
    def process(self) -> Process | None:
        """Return the process that made the attempt; None if it is unknown or one of several."""
        return None if self.attribution is None else self.attribution.process

    @staticmethod
    def of(record: Record, attribution: Attribution | None = None) -> Attempt:
        """Return the attempt that consists of the packet of one log record."""
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
    """End of an incident: the flow had no packet for a while, or the service has stopped.

    ``record`` is the record of the last attempt. ``end_ns`` is the end of the last attempt (since
    the epoch, UTC).
    """

    record: Record
    incident: Incident
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """Scan: many destinations or ports that one user tries within a short time.

    ``verdict`` is as in the records of the rule: ``permit`` if a permissive fence allowed the
    packets. ``identity`` is the same for all reports, from stage ``begun`` to ``ended``. All
    numbers are totals up to now: ``flows`` distinct flows to ``destinations`` addresses and
    ``ports`` ports, with ``packets`` packets. The numbers are lower bounds, because only a limited
    number of addresses and ports is stored. ``sample`` has some of the flows. Times are as in
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
