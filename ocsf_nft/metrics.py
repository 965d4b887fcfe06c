"""Metrics in Prometheus' text format.

The names of metrics and labels must stay the same, because users' dashboards depend on them. No
label has an address or a user as its value, because each value makes a new time series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge

from ocsf_nft.attribution.fallback_chain import TopMethod
from ocsf_nft.ocsf.context import product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from ocsf_nft.service.delivery_answers import SinkStatus
    from ocsf_nft.service.finding_counts import FindingCount, FindingKey
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.status import Status

_Family: TypeAlias = type[Counter] | type[Gauge]
#: Metrics of a rule. The name begins with the name of an attribute of Balance.
_OF_RULE: Final[Sequence[tuple[_Family, str, str]]] = (
    (Counter, "refused_packets", "Packets that the rule refused, as counted by the kernel."),
    (
        Counter, "allowed_packets",
        "Packets that the rule would have refused, and allowed because its fence is permissive.",
    ),
    (Counter, "reported_packets", "Packets in events: the sum of their counts."),
    (Counter, "aggregated_packets", "Packets in events that do not name the flow."),
    (Gauge, "pending_packets", "Packets that the kernel has counted and that no event has yet."),
    (Gauge, "dropped_records", "Log records that no process has read; their packets are counted."),
    (
        Gauge, "counter_mismatch_packets",
        "Packets that are missing (positive) or reported twice (negative); 0 is correct.",
    ),
)  # fmt: skip
_OF_SINK: Final[Sequence[tuple[_Family, str, Callable[[SinkStatus], float], str]]] = (
    (
        Counter, "delivered_events", lambda sink: sink.delivered,
        "Events that the sink acknowledged in this run.",
    ),
    (
        Counter, "refused_events", lambda sink: sink.refused,
        "Events that the sink refused: they are dead letters.",
    ),
    (Counter, "failures", lambda sink: sink.failures, "Deliveries that failed, and are retried."),
    (Gauge, "up", lambda sink: sink.fault is None, "1 if the last delivery succeeded, else 0."),
    (
        Gauge, "waiting_events", lambda sink: sink.waiting,
        "Stored events after the sink's checkpoint, also of classes that it does not get.",
    ),
    (Gauge, "dead_letters", lambda sink: sink.dead, "Refused events that are stored."),
)  # fmt: skip


def exposition(found: Sequence[Status]) -> bytes:
    """Convert the status of sandboxes (``found``) to metrics in Prometheus' text format."""
    return _text(_of_sandboxes(found))


async def exposition_of(service: Service) -> bytes:
    """Return the metrics of a running service and its sandboxes in Prometheus' text format.

    Raises DeliveryError if the state of a sandbox can't be read.
    """
    found = await service.statuses()
    failed = [
        each.name for each in service.sandboxes if each.watched is None and each.failure is not None
    ]
    return _text(
        (
            *_of_sandboxes(found, failed),
            *_of_findings(service.findings),
            *_of_run(service),
            *_of_sinks(service.delivery.sinks),
        )
    )


def _text(metrics: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collector(tuple(metrics)))
    return generate_latest(registry)


class _Collector:  # the interface that prometheus_client requires
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _metric(
    family: _Family,
    name: str,
    text: str,
    samples: Iterable[tuple[Sequence[str], float]],
    *labels: str,
) -> Metric:
    """Return a metric. A sample has the values of the ``labels``, and a number."""
    metric = family(f"ocsf_nft_{name}", text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def _one(number: float) -> Sequence[tuple[Sequence[str], float]]:
    return [((), number)]


def _of_sandboxes(found: Sequence[Status], failed: Sequence[str] = ()) -> Iterator[Metric]:
    """Yield the metrics of sandboxes; those in ``failed`` can't be watched, and have no status."""
    balances = [balance for status in found for balance in status.balances]
    for family, name, text in _OF_RULE:
        attribute = name.rpartition("_")[0]
        numbers = [
            ((each.sandbox, each.rule, each.mode), getattr(each, attribute)) for each in balances
        ]
        yield _metric(family, name, text, numbers, "sandbox", "rule", "mode")
    dropped = [
        ((status.sandbox, each.source), each) for status in found for each in status.dropped_records
    ]
    yield _metric(
        Counter, "gap_records", "Log records dropped in gaps, if the source knows their number.",
        [(values, each.records) for values, each in dropped], "sandbox", "source",
    )  # fmt: skip
    yield _metric(
        Counter, "gaps",
        "Times that a source dropped records, that the counters could not be read (source "
        "counters), or that no process read them for some seconds (source reader).",
        [(values, each.gaps) for values, each in dropped], "sandbox", "source",
    )  # fmt: skip
    watched = [((status.sandbox,), status.is_watched) for status in found]
    watched += [((name,), False) for name in failed]
    yield _metric(Gauge, "watched", "1 if a run watches the sandbox, else 0.", watched, "sandbox")
    active = [((each.sandbox,), each.verdict == "as installed") for each in found if each.verdict]
    text = "1 if the fence is as installed, else 0; absent if nft can't be run."
    yield _metric(Gauge, "fence_active", text, active, "sandbox")


def _of_findings(found: Mapping[FindingKey, FindingCount]) -> Iterator[Metric]:
    counts = [
        (
            (key.sandbox or "", key.code, key.severity.caption.lower(), str(key.is_alert).lower()),
            each,
        )
        for key, each in found.items()
    ]
    labels = "sandbox", "code", "severity", "alert"
    yield _metric(
        Counter, "findings", "Findings created in this run.",
        [(values, each.created) for values, each in counts], *labels,
    )  # fmt: skip
    yield _metric(
        Gauge, "finding_timestamp_seconds",
        "Unix time of the last creation or update of such a finding in this run.",
        [(values, each.latest_ms / 1000) for values, each in counts], *labels,
    )  # fmt: skip


def _of_run(service: Service) -> Iterator[Metric]:
    counts, chain = service.counts, service.fallback_chain
    retention = service.store.database.retention
    version = [((product().version or "",), 1)]
    yield _metric(Gauge, "build_info", "1, for its version.", version, "version")
    yield _metric(Counter, "records", "Log records read in this run.", _one(counts.records))
    unparsed = [((kind,), number) for kind, number in counts.rejected.items()]
    text = "Lines that could not be parsed as a record."
    yield _metric(Counter, "unparsed_lines", text, unparsed, "kind")
    yield _metric(Counter, "events", "Events stored in this run.", _one(service.events))
    yield _metric(
        Gauge, "attribution_method",
        "1 for the best attribution method in use, 0 for the others: capture (the process while "
        "it sends), socket (the process that has the socket afterwards), user (the user only).",
        [((method,), method == chain.method) for method in get_args(TopMethod)], "method",
    )  # fmt: skip
    text = "Calls and processes that the capture had no room for in this run."
    yield _metric(Counter, "capture_dropped_events", text, _one(chain.dropped))
    yield _metric(
        Gauge, "store_bytes", "Size of the stored events in bytes.", _one(retention.used_bytes)
    )
    text = "Number of the stored events."
    yield _metric(Gauge, "store_events", text, _one(retention.stored_events))
    text = "Largest size of the stored events in bytes."
    yield _metric(Gauge, "store_max_bytes", text, _one(retention.max_bytes))
    text = "1 if the store can be written, else 0; no record is read meanwhile."
    yield _metric(Gauge, "store_up", text, _one(service.retrier.fault is None))


def _of_sinks(sinks: Sequence[SinkStatus]) -> Iterator[Metric]:
    for family, name, value, text in _OF_SINK:
        numbers = [((sink.name,), value(sink)) for sink in sinks]
        yield _metric(family, f"sink_{name}", text, numbers, "sink")
