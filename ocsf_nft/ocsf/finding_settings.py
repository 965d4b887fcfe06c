"""Settings of findings: when there is one, and which ones are alerts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ocsf_nft.ocsf.enums import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelThreshold:
    """Condition for DNS queries to be a tunnel: that many distinct long names below one domain.

    ``length`` is the number of characters of a long name, without the domain and the dots.
    ``entropy`` is the minimum of bits a character in all these names together.
    """

    names: int = 50
    length: int = 30
    entropy: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSettings:
    """Conditions for findings and alerts, as configured.

    Blocked packets of a flow cause a finding if their severity is ``min_severity`` or above. With
    severity Medium or above, ``packets`` packets are enough.
    """

    min_severity: Severity = Severity.HIGH
    packets: int = 10
    #: The DNS queries of a flow cause one too if they are a tunnel by this condition.
    tunnel: TunnelThreshold = field(default_factory=TunnelThreshold)
    #: A finding of this severity or a higher one is an alert.
    alert_severity: Severity = Severity.HIGH
    #: Whether a finding is closed when its packets have ended. Otherwise only a person closes it.
    auto_close: bool = False
    #: Address of the runbook's pages; None if they are on no web server.
    runbook_url: str | None = None

    def is_finding(self, severity: Severity, packets: int) -> bool:
        """Return True if this number of a flow's packets, with this severity, causes a finding."""
        if severity >= self.min_severity:
            return True
        return severity >= Severity.MEDIUM and packets >= self.packets
