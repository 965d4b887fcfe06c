"""Metrics in Prometheus' text format.

The names of metrics and labels must stay the same, because users' dashboards depend on them. No
label has an address or a user as its value, because each value makes a new time series.
"""

# ruff: noqa: PLC0415 - prometheus_client imports an HTTP client and server: only metrics need it

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.service.delivery_answers import SinkStatus
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.status import Status

_COUNTERS: Final = {
    "refused_packets": "Packets that the rule refused, as counted by the kernel.",
    "allowed_packets": (
        "Packets that the rule would have refused, and allowed because its fence is permissive."
    ),
    "reported_packets": "Packets in events: the sum of their counts.",
    "aggregated_packets": "Packets in events that do not name the flow.",
}
_GAUGES: Final = {
    "pending_packets": "Packets that the kernel has counted and that no event has yet.",
    "dropped_records": "Log records that no process has read; their packets are counted.",
    "counter_mismatch_packets": (
        "Packets that are missing (positive) or reported twice (negative); 0 is correct."
    ),
}
_GAP_RECORDS: Final = "Log records dropped in gaps, if the source knows their number."
_GAPS: Final = (
    "Times that a source dropped records, that the counters could not be read (source counters), "
    "or that no process read them for some seconds (source reader)."
)
_ACTIVE: Final = "1 if the fence is as installed, else 0; absent if nft can't be run."
_WATCHED: Final = "1 if a run watches the sandbox, else 0."
_METHOD: Final = (
    "1 for the best attribution method in use, 0 for the others: capture (the process while it "
    "sends), socket (the process that has the socket afterwards), user (the user only)."
)
_CAPTURE_DROPPED: Final = "Calls and processes that the capture had no room for in this run."

#: Counters and state of a sink.
_SINK_COUNTERS: Final[Mapping[str, tuple[str, Callable[[SinkStatus], float]]]] = {
    "sink_delivered_events": (
        "Events that the sink acknowledged in this run.",
        lambda sink: sink.delivered,
    ),
    "sink_refused_events": (
        "Events that the sink refused: they are dead letters.",
        lambda sink: sink.refused,
    ),
    "sink_failures": (
        "Deliveries that failed, and are retried.",
        lambda sink: sink.failures,
    ),
}
_SINK_GAUGES: Final[Mapping[str, tuple[str, Callable[[SinkStatus], float]]]] = {
    "sink_up": (
        "1 if the last delivery succeeded, else 0.",
        lambda sink: sink.fault is None,
    ),
    "sink_waiting_events": (
        "Stored events after the sink's checkpoint, also of classes that it does not get.",
        lambda sink: sink.waiting,
    ),
    "sink_dead_letters": (
        "Refused events that are stored.",
        lambda sink: sink.dead,
    ),
}


def exposition(found: Sequence[Status]) -> bytes:
    """Convert the status of sandboxes (``found``) to metrics in Prometheus' text format."""
    return _text(_of_sandboxes(found))


async def exposition_of(service: Service) -> bytes:
    """Return the metrics of a running service and its sandboxes in Prometheus' text format.

    Raises DeliveryError if the state of a sandbox can't be read.
    """
    found = await service.statuses()
    return _text((*_of_sandboxes(found), *_of_run(service), *_of_sinks(service.delivery.sinks)))


def _text(metrics: Iterable[Metric]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(tuple(metrics)))
    return generate_latest(registry)


class _Collector:  # the interface that prometheus_client requires
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
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
    active = GaugeMetricFamily("ocsf_nft_fence_active", _ACTIVE, labels=("sandbox",))
    for status in found:
        if status.verdict is not None:
            active.add_metric((status.sandbox,), status.verdict == "as installed")
        for dropped in status.dropped_records:
            records.add_metric((status.sandbox, dropped.source), dropped.records)
            gaps.add_metric((status.sandbox, dropped.source), dropped.gaps)
        watched.add_metric((status.sandbox,), status.is_watched)
    yield from (records, gaps, watched, active)


def _of_run(service: Service) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from ocsf_nft.ocsf.context import product

    counts, store = service.counts, service.store
    build = GaugeMetricFamily("ocsf_nft_build_info", "1, for its version.", labels=("version",))
    build.add_metric((product().version,), 1)
    yield build
    yield CounterMetricFamily("ocsf_nft_records", "Log records read in this run.", counts.records)
    unparsed = CounterMetricFamily(
        "ocsf_nft_unparsed_lines", "Lines that could not be parsed as a record.", labels=("kind",)
    )
    for kind, number in counts.rejected.items():
        unparsed.add_metric((kind,), number)
    yield unparsed
    yield CounterMetricFamily(
        "ocsf_nft_events",
        "Events stored in this run.",
        service.events,
    )
    yield from _of_attribution(service.fallback_chain)
    yield GaugeMetricFamily(
        "ocsf_nft_store_bytes",
        "Size of the stored events in bytes.",
        store.used_bytes,
    )
    yield GaugeMetricFamily(
        "ocsf_nft_store_max_bytes",
        "Largest size of the stored events in bytes.",
        store.max_bytes,
    )
    yield GaugeMetricFamily(
        "ocsf_nft_store_up",
        "1 if the store can be written, else 0; no record is read meanwhile.",
        service.retrier.fault is None,
    )


def _of_attribution(chain: FallbackChain) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from ocsf_nft.attribution.fallback_chain import TopMethod

    method = GaugeMetricFamily("ocsf_nft_attribution_method", _METHOD, labels=("method",))
    for name in get_args(TopMethod):
        method.add_metric((name,), name == chain.method)
    yield method
    yield CounterMetricFamily("ocsf_nft_capture_dropped_events", _CAPTURE_DROPPED, chain.dropped)


def _of_sinks(sinks: Sequence[SinkStatus]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for family, names in (
        (CounterMetricFamily, _SINK_COUNTERS),
        (GaugeMetricFamily, _SINK_GAUGES),
    ):
        for name, (text, value) in names.items():
            metric = family(f"ocsf_nft_{name}", text, labels=("sink",))
            for sink in sinks:
                metric.add_metric((sink.name,), value(sink))
            yield metric
