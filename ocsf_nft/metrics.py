"""What is counted, as Prometheus reads it.

Names and labels are a contract with dashboards. The labels are few: a sandbox, its rules, the
kinds of source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from ocsf_nft.service.status import Status

_COUNTERS: Final = {
    "refused": "Packets that the rule refused, as the kernel counts them.",
    "reported": "Packets that events have told: the sum of their counts.",
    "overflowed": "Packets that events have told without saying which flow they were of.",
}
_GAUGES: Final = {
    "in_flight": "Packets that the kernel has counted and no event has told yet.",
    "imbalance": "Packets that are missing, or were told twice (negative): 0 when all is well.",
}


def exposition(found: Sequence[Status]) -> bytes:
    """The metrics of some sandboxes in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry)


class _Collector:
    def __init__(self, found: Sequence[Status]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """The families, each with its samples."""
        balances = [balance for status in self._found for balance in status.balances]
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(
                f"ocsf_nft_{name}_packets", text, labels=("sandbox", "rule")
            )
            for each in balances:
                counter.add_metric((each.sandbox, each.rule), getattr(each, name))
            yield counter
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"ocsf_nft_{name}_packets", text, labels=("sandbox", "rule"))
            for each in balances:
                gauge.add_metric((each.sandbox, each.rule), getattr(each, name))
            yield gauge
        yield from self._of_sources()
        watched = GaugeMetricFamily(
            "ocsf_nft_watched", "Whether a run watches the sandbox now.", labels=("sandbox",)
        )
        for status in self._found:
            watched.add_metric((status.sandbox,), status.is_watched)
        yield watched

    def _of_sources(self) -> Iterator[Metric]:
        records = CounterMetricFamily(
            "ocsf_nft_lost_records",
            "Log records that a source could not read; their packets are counted all the same.",
            labels=("sandbox", "source"),
        )
        gaps = CounterMetricFamily(
            "ocsf_nft_gaps", "Times that a source lost records.", labels=("sandbox", "source")
        )
        for status in self._found:
            for lost in status.lost:
                records.add_metric((status.sandbox, lost.source), lost.records)
                gaps.add_metric((status.sandbox, lost.source), lost.gaps)
        yield records
        yield gaps
