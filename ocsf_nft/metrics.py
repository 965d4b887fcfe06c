"""What is counted, as Prometheus reads it.

Names and labels are a contract with dashboards. The labels are few: a sandbox, its rules and
their mode (enforcing or permissive), the kinds of source, the sinks by their names, the ways to
name a process.
"""

# ruff: noqa: PLC0415 - prometheus_client brings an HTTP client and server: only who asks needs it

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.delivery.forwarder import Forwarder
    from ocsf_nft.service import Service
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
_RUNG: Final = (
    "1 for the best way in use to name a process, 0 for the others: capture, as it sends; socket, "
    "who has the socket afterwards; user, its user alone."
)
_CAPTURE_LOST: Final = (
    "Calls and processes that the capture had no room to tell of since the run began."
)

#: Of a sink: what its forwarder counts since the run began, and how it is now.
_SINK_COUNTERS: Final[Mapping[str, tuple[str, Callable[[Forwarder], float]]]] = {
    "sink_delivered_events": (
        "Events that the sink has acknowledged since the run began.",
        lambda forwarder: forwarder.progress.delivered,
    ),
    "sink_refused_events": (
        "Events that the sink will not take: they are dead letters.",
        lambda forwarder: forwarder.progress.refused,
    ),
    "sink_failures": (
        "Deliveries that failed and are tried again.",
        lambda forwarder: forwarder.progress.failures,
    ),
}
_SINK_GAUGES: Final[Mapping[str, tuple[str, Callable[[Forwarder], float]]]] = {
    "sink_up": (
        "Whether the sink took what it was sent last.",
        lambda forwarder: forwarder.progress.fault is None,
    ),
    "sink_waiting_events": (
        "Events in the store that the sink has yet to get, those of no class of its own too.",
        lambda forwarder: forwarder.pending,
    ),
    "sink_dead_letters": (
        "Events that the sink would not take, and that are kept.",
        lambda forwarder: forwarder.progress.dead,
    ),
}


def exposition(found: Sequence[Status]) -> bytes:
    """The metrics of some sandboxes in Prometheus' text format."""
    return _text(_of_sandboxes(found))


async def exposition_of(service: Service) -> bytes:
    """The metrics of a run, and of its sandboxes; raises DeliveryError."""
    found = await service.statuses()
    return _text(
        (*_of_sandboxes(found), *_of_run(service), *_of_sinks(service.delivery.forwarders))
    )


def _text(metrics: Iterable[Metric]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(tuple(metrics)))
    return generate_latest(registry)


class _Collector:
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        """The families, each with its samples."""
        return self._metrics


def _of_sandboxes(found: Sequence[Status]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    by_rule, by_source = ("sandbox", "rule", "mode"), ("sandbox", "source")
    balances = [balance for status in found for balance in status.balances]
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
    for status in found:
        if status.verdict is not None:
            stands.add_metric((status.sandbox,), status.verdict == "as installed")
        for lost in status.dropped_records:
            records.add_metric((status.sandbox, lost.source), lost.records)
            gaps.add_metric((status.sandbox, lost.source), lost.gaps)
        watched.add_metric((status.sandbox,), status.is_watched)
    yield from (records, gaps, watched, stands)


def _of_run(service: Service) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from ocsf_nft.ocsf.context import product

    counts, store = service.counts, service.delivery.store
    build = GaugeMetricFamily("ocsf_nft_build_info", "1, for its version.", labels=("version",))
    build.add_metric((product().version,), 1)
    yield build
    yield CounterMetricFamily(
        "ocsf_nft_records", "Log records that were read since the run began.", counts.records
    )
    rejects = CounterMetricFamily(
        "ocsf_nft_rejects", "Lines that were not taken for a record.", labels=("kind",)
    )
    for kind, number in counts.rejected.items():
        rejects.add_metric((kind,), number)
    yield rejects
    yield CounterMetricFamily(
        "ocsf_nft_events",
        "Events that were put into the store since the run began.",
        service.events,
    )
    yield from _of_ladder(service.fallback_chain)
    yield GaugeMetricFamily(
        "ocsf_nft_store_bytes", "What the store takes of the disk.", store.used_bytes
    )
    yield GaugeMetricFamily(
        "ocsf_nft_store_max_bytes", "What the store may take of the disk.", store.max_bytes
    )
    yield GaugeMetricFamily(
        "ocsf_nft_store_up",
        "Whether the disk takes what is to be kept; while it doesn't, no record is read.",
        service.retrier.fault is None,
    )


def _of_ladder(ladder: FallbackChain) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from ocsf_nft.attribution.fallback_chain import TopMethod

    rung = GaugeMetricFamily("ocsf_nft_attribution_rung", _RUNG, labels=("rung",))
    for name in get_args(TopMethod):
        rung.add_metric((name,), name == ladder.method)
    yield rung
    yield CounterMetricFamily("ocsf_nft_capture_lost_events", _CAPTURE_LOST, ladder.dropped)


def _of_sinks(forwarders: Sequence[Forwarder]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for family, names in (
        (CounterMetricFamily, _SINK_COUNTERS),
        (GaugeMetricFamily, _SINK_GAUGES),
    ):
        for name, (text, value) in names.items():
            metric = family(f"ocsf_nft_{name}", text, labels=("sink",))
            for forwarder in forwarders:
                metric.add_metric((forwarder.name,), value(forwarder))
            yield metric
