"""Facts for OCSF events: attempts (refused packets), incidents (series of attempts), and scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ocsf_nft.flow import Flow
from ocsf_nft.process import Attribution, Process
from ocsf_nft.record import DnsQuestion, Record, Verdict

#: Reason why packets of several flows are aggregated. ``many``: one user has more flows than are
#: reported separately. ``unplaced``: the flows found no free slot in the kernel's sets.
#: ``evicted``: the kernel evicted the flows before their counts were read.
AggregationReason: TypeAlias = Literal["many", "unplaced", "evicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Description of several flows that are reported as one attempt.

    ``reason`` is the reason why the flows are not reported separately. ``flows`` is the number of
    these flows; None if unknown. ``sample`` has some of the flows.
    """

    reason: AggregationReason
    flows: int | None = None
    sample: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Series of attempts of one flow, without a long pause between the attempts."""

    #: Text that is the same in all events of the incident.
    identity: str
    #: Number of attempts.
    windows: int
    #: Number of packets in all attempts.
    packets: int
    #: The incident becomes a finding when its severity and number of packets reach the configured
    #: threshold. The value is 3 if the third attempt reached the threshold; None if none has yet.
    found_at: int | None
    #: Start of the first attempt (ns since the epoch, UTC).
    start_ns: int
    #: Identities of the latest attempts' log records, oldest first.
    latest: tuple[str, ...]
    #: Processes that may have sent the packets, merged from the attributions of all attempts. None
    #: if no attempt has one.
    attribution: Attribution | None = None
    #: Distinct DNS questions of all attempts; there may be more, see :attr:`Attempt.questions`.
    questions: tuple[DnsQuestion, ...] = ()

    @property
    def process(self) -> Process | None:
        """Return the process that made all attempts; None if unknown or if several are possible."""
        return None if self.attribution is None else self.attribution.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Refused packets of one flow (or of aggregated flows) in one time window.

    Each packet belongs to exactly one attempt.
    """

    #: Kernel log record of the first packet. If no packet was logged, it has the counter's data.
    record: Record
    #: Exact, like ``bytes``.
    packets: int
    #: None if bytes were not counted.
    bytes: int | None
    #: All packets are from the time between ``start_ns`` and ``end_ns`` (ns since the epoch, UTC).
    start_ns: int
    end_ns: int
    #: None if the attempt has only one flow.
    aggregation: Aggregation | None = None
    incident: Incident | None = None
    attribution: Attribution | None = None
    #: Distinct DNS questions in the log records of the packets, at most 512. The kernel logs only
    #: some packets, so there may be more.
    questions: tuple[DnsQuestion, ...] = ()

    @property
    def process(self) -> Process | None:
        """Return the process that made the attempt; None if unknown, or if several are possible."""
        return None if self.attribution is None else self.attribution.process

    @staticmethod
    def of(record: Record, attribution: Attribution | None = None) -> Attempt:
        """Return an attempt with a single packet, the packet of ``record``."""
        return Attempt(
            record=record,
            packets=1,
            bytes=record.length,
            start_ns=record.time_ns,
            end_ns=record.time_ns,
            attribution=attribution,
            questions=() if record.question is None else (record.question,),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentEnd:
    """End of an incident: the flow had no packet for a while, or the service has stopped.

    ``record`` is the log record of the incident's last attempt. ``end_ns`` is the end of that
    attempt (ns since the epoch, UTC). ``is_stopped`` means that nothing watches the sandbox any
    more, so that later packets are unknown.
    """

    record: Record
    incident: Incident
    end_ns: int
    is_stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSender:
    """Process that sent packets of a scan, and the number of its attempts in events."""

    process: Process
    attempts: int
    #: One of its flows.
    flow: Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """Scan: one user sends to many destinations or ports within a short time."""

    #: Text that is the same in all events of the scan.
    identity: str
    stage: Literal["begun", "goes on", "ended"]
    sandbox: str
    #: Firewall rule that the packets matched.
    rule: str
    #: None if the rule refused the packets; ``permit`` if a permissive fence allowed them.
    verdict: Verdict | None = None
    uid: int | None
    #: Numbers of different flows, addresses and ports since the start of the scan. These, and
    #: ``packets``, are minimum numbers, because the memory for flows is limited.
    flows: int
    destinations: int
    ports: int
    packets: int
    #: Some of the flows.
    sample: tuple[Flow, ...]
    #: All packets are from the time between ``start_ns`` and ``end_ns`` (ns since the epoch, UTC).
    start_ns: int
    end_ns: int
    #: Number of reported attempts, and identities of the latest ones' log records, oldest first.
    windows: int = 0
    latest: tuple[str, ...] = ()
    #: Processes that sent packets, each with one of its flows. They sent at least one packet each.
    senders: tuple[ScanSender, ...] = ()
    #: Minimum number of further processes.
    unnamed: int = 0
    #: Number of reported attempts of single flows that no process was seen to make.
    unknown: int = 0
    #: True if the scan has ended because nothing watches the sandbox any more.
    is_stopped: bool = False

    @property
    def sole_sender(self) -> Process | None:
        """Return the only process that was seen to send; None if most attempts have no sender.

        Another process may have made those, and this one must not be named for them.
        """
        if len(self.senders) != 1 or self.unnamed or self.senders[0].attempts < self.unknown:
            return None
        return self.senders[0].process
