"""Numbers of findings by sandbox and situation, for metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf.enums import FindingActivityId, Severity

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from ocsf_nft.ocsf.events import DetectionFinding

#: The alerts in deploy/grafana are about findings of the last 15 minutes. A sandbox may end sooner.
_RETENTION_MS: Final = 900_000


class FindingKey(NamedTuple):
    """Situation of findings in one sandbox, with few values for each attribute."""

    #: None for findings about several sandboxes.
    sandbox: str | None
    code: str
    severity: Severity
    is_alert: bool


class FindingCount(NamedTuple):
    """Number of created findings, and the time of the latest event (ms since the epoch, UTC).

    The latest event is a creation or an update, but not the end of a finding.
    """

    created: int
    latest_ms: int


class FindingCounts:
    """Numbers of findings since the start of the service."""

    def __init__(self) -> None:
        self._counts: dict[FindingKey, FindingCount] = {}

    def add(self, finding: DetectionFinding, sandbox: str | None) -> None:
        """Count a finding that was created or updated; the caller leaves out its end."""
        metadata = finding.metadata
        key = FindingKey(sandbox, metadata.event_code or "", finding.severity_id, finding.is_alert)
        created = self._counts[key].created if key in self._counts else 0
        created += finding.activity_id is FindingActivityId.CREATE
        self._counts[key] = FindingCount(created, metadata.processed_time or 0)

    def drop_expired(self, sandboxes: Container[str | None], now_ms: int) -> None:
        """Drop sandboxes that are not in ``sandboxes`` and had no finding for 15 minutes.

        ``now_ms`` is the current time (ms since the epoch, UTC).
        """
        self._counts = {
            key: count
            for key, count in self._counts.items()
            if key.sandbox is None
            or key.sandbox in sandboxes
            or now_ms - count.latest_ms < _RETENTION_MS
        }

    def counts(self) -> Mapping[FindingKey, FindingCount]:
        """Return the numbers of findings by their situations."""
        return self._counts
