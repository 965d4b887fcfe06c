"""What is counted, as Prometheus reads it.

Names and labels are a contract with dashboards. The labels are few: a sandbox, its rules and
their mode (enforcing or permissive), the kinds of source.
"""

# ruff: noqa: PLC0415 - prometheus_client brings an HTTP client and server: only who asks needs it

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from ocsf_nft.service.status import Status

_COUNTERS: Final = {
    "refused_packets": "Packets that the rule refused, as the kernel counts them.",
    "let_pass_packets": (
        "Packets that the rule would have refused, and let pass because its fence is permissive."
    ),
    "reported_packets": "Packets that events have told: the sum of their counts.",
    "overflowed_packets": "Packets that events have told without saying which flow they were of.",
}
_GAUGES: Final = {
    "in_flight_packets": "Packets that the kernel has counted and no event has told yet.",
    "lost_records": "Log records that nobody has read; their packets are counted all the same.",
    "imbalance_packets": (
        "Packets that are missing, or were told twice (negative): 0 when all is well."
    ),
}
_GAP_RECORDS: Final = "Log records that were lost in gaps, as far as a source knows how many."
_GAPS: Final = (
    "Times that a source lost records, that the counters could not be read (source counters), or "
    "that nobody read them for some seconds (source reader)."
)
_STANDS: Final = "Whether the fence stands as it was installed; absent where nft can't be asked."
_WATCHED: Final = "Whether a run watches the sandbox now."


def exposition(found: Sequence[Status]) -> bytes:
    """The metrics of some sandboxes in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry)


class _Collector:
    def __init__(self, found: Sequence[Status]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """The families, each with its samples."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        by_rule, by_source = ("sandbox", "rule", "mode"), ("sandbox", "source")
        balances = [balance for status in self._found for balance in status.balances]
        for family, names in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, text in names.items():
                metric = family(f"ocsf_nft_{name}", text, labels=by_rule)
                for each in balances:
                    value = getattr(each, name.rpartition("_")[0])
                    metric.add_metric((each.sandbox, each.rule, each.mode), value)
                yield metric
        records = CounterMetricFamily("ocsf_nft_gap_records", _GAP_RECORDS, labels=by_source)
        gaps = CounterMetricFamily("ocsf_nft_gaps", _GAPS, labels=by_source)
        watched = GaugeMetricFamily("ocsf_nft_watched", _WATCHED, labels=("sandbox",))
        stands = GaugeMetricFamily("ocsf_nft_fence_stands", _STANDS, labels=("sandbox",))
        for status in self._found:
            if status.verdict is not None:
                stands.add_metric((status.sandbox,), status.verdict == "as installed")
            for lost in status.lost:
                records.add_metric((status.sandbox, lost.source), lost.records)
                gaps.add_metric((status.sandbox, lost.source), lost.gaps)
            watched.add_metric((status.sandbox,), status.is_watched)
        yield from (records, gaps, watched, stands)
