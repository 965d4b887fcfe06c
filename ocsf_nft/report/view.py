"""Aggregated facts of a report; each has a bounded size. Times are in ms since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ocsf_nft.report.tables import Counts

if TYPE_CHECKING:
    from ocsf_nft.report.coverage import Coverage
    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.histogram import Histogram
    from ocsf_nft.report.processes import ProcessFacts
    from ocsf_nft.report.tables import Top


class Destination(NamedTuple):
    """Destination of packets of one sandbox."""

    sandbox: str
    #: Text such as "TCP 203.0.113.7:443 https".
    traffic: str


class Flow(NamedTuple):
    """Packets with the same sender, destination and outcome."""

    sandbox: str
    sender: str
    traffic: str
    severity_id: int
    is_allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Numbers over all selected events."""

    #: Selected events, also those of other classes.
    events: int
    blocked: int
    allowed: int
    #: Packets whose events name at least one process that sent them.
    named: int
    #: Packets that events report without their destination.
    aggregated: int

    @property
    def packets(self) -> int:
        """Return the number of packets of all Network Activity events."""
        return self.blocked + self.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Lines that were read, selected or not."""

    lines: int
    #: Lines that are no event.
    others: int
    #: Events with a ``metadata.uid`` that was read shortly before.
    repeated: int
    #: Time of the earliest event of the input, selected or not.
    first_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All facts of a report."""

    #: Times of the first and the last packet or finding; None without them.
    first_ms: int | None
    last_ms: int | None
    totals: Totals
    read: Input
    #: Open findings first, the most severe first.
    findings: tuple[Finding, ...]
    more_findings: int
    processes: Top[ProcessFacts]
    destinations: Top[Destination]
    flows: Top[Flow]
    #: Names that programs looked up or connected to.
    names: Top[str]
    histogram: Histogram
    coverage: Coverage
    #: Facts about each sandbox, as pairs such as ("Host", "host-1").
    identity: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    has_more_sandboxes: bool

    @property
    def process_rows(self) -> list[tuple[ProcessFacts, Counts]]:
        """Return the processes with their packets, then those that only a finding names."""
        rows: list[tuple[ProcessFacts, Counts]] = list(self.processes.rows)
        known = {(facts.sandbox, facts.process) for facts, _ in rows}
        for finding in self.findings:
            for each in finding.processes:
                if (each.sandbox, each.process) not in known:
                    known.add((each.sandbox, each.process))
                    rows.append((each, Counts(0, 0, 0, finding.first_ms, finding.last_ms)))
        return rows
