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
    """Description of several flows that are reported as one attempt.

    ``reason`` is why they are not reported separately. ``flows`` is the number of these flows; None
    if unknown. ``sample`` has some of these flows.
    """

    reason: AggregationReason
    flows: int | None = None
    sample: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Successive attempts of one flow without a pause; a significant incident becomes a finding.

    The fields describe the incident up to its latest attempt. ``identity`` is the same in all
    events of the incident. ``windows`` is the number of attempts, each of one time window.
    ``packets`` is the number of packets in all attempts. ``start_ns`` is the start of the first
    attempt (ns since the epoch, UTC). ``found_at`` is the number of the attempt with which the
    incident became a finding: for example 3 for the third attempt. It is None if the incident is no
    finding yet. ``latest`` has the identities of the latest attempts' records, oldest first.
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
        """Return the process that made all attempts; None if it is unknown or one of several."""
        return None if self.attribution is None else self.attribution.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Packets of one flow (or of aggregated flows) in one time window.

    Each packet belongs to exactly one attempt. ``record`` describes the attempt. It is the kernel's
    log record of the first packet. If the kernel logged none, it is a record made from the counter.
    ``packets`` and ``bytes`` are exact; ``bytes`` is None if the bytes were not counted. All
    packets are from the time between ``start_ns`` and ``end_ns`` (ns since the epoch, UTC).
    ``aggregation`` is None if the attempt has only one flow. ``incident`` is None if the attempt
    belongs to no incident. ``attribution`` is None if the attempt was not attributed.
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
        """Return the process that made the attempt; None if unknown, or if several are possible."""
        return None if self.attribution is None else self.attribution.process

    @staticmethod
    def of(record: Record, attribution: Attribution | None = None) -> Attempt:
        """Return an attempt that has only the packet of one log record."""
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

    ``record`` is the record of the incident's last attempt. ``end_ns`` is the end of this attempt
    (ns since the epoch, UTC).
    """

    record: Record
    incident: Incident
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """Scan: many destinations or ports to which one user sends within a short time.

    ``rule`` is the firewall rule that refused the packets. ``verdict`` is ``permit`` if a
    permissive fence allowed the packets, otherwise None. ``identity`` is the same in all reports of
    the scan, from stage ``begun`` to ``ended``.

    ``flows`` is the number of distinct flows since the start of the scan. In the same way,
    ``destinations`` is the number of addresses, ``ports`` that of ports, and ``packets`` that of
    packets. These numbers are lower bounds, because only a limited number of addresses and ports is
    stored. ``sample`` has some of the flows. All packets are from the time between ``start_ns`` and
    ``end_ns`` (ns since the epoch, UTC).
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
