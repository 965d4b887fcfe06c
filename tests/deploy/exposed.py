"""Metrics of a run, each with a sample, from the product's code and objects that don't run."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from ocsf_nft.flows.sandbox_account import Balance
from ocsf_nft.metrics import exposition_of
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.service.delivery_answers import SinkStatus
from ocsf_nft.service.finding_counts import FindingCount, FindingKey
from ocsf_nft.service.status import Status
from ocsf_nft.state.change import DroppedRecords
from ocsf_nft.state.state_db import FILE
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from pathlib import Path


_COUNT: Final = FindingCount(created=2, latest_ms=1_764_500_000_000)


class Exposed(NamedTuple):
    """A metric with the name and the labels of its samples."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str
    sample: dict[str, str]
    value: float


def exposition(folder: Path, *, method: str = "capture") -> str:
    """Return the answer of /metrics for a run with a source, an unparsed line and a sink."""
    balance = Balance(
        sandbox="agent", rule="egress", refused=100, reported=80, aggregated=30, pending=15,
        dropped=7,
    )  # fmt: skip
    status = Status(
        sandbox="agent",
        is_watched=True,
        absent=(),
        balances=(balance,),
        dropped_records=(DroppedRecords("nflog", 2, 9),),
    )

    async def statuses() -> tuple[Status, ...]:
        return (status,)

    async def exposed() -> bytes:
        store = Store(folder / FILE)
        sink = SinkStatus(
            name="siem", done=0, delivered=0, refused=0, failures=0, dead=0, fault=None, waiting=3
        )
        service: Any = SimpleNamespace(
            statuses=statuses,
            sandboxes=(
                SimpleNamespace(name="broken", watched=None, failure="its fence can't be active"),
                SimpleNamespace(name="waiting", watched=None, failure=None),
            ),
            counts=SimpleNamespace(records=90, rejected={"forged": 1}),
            events=85,
            findings={FindingKey("agent", "bypass-finding", Severity.HIGH, True): _COUNT},
            retrier=store.retrier,
            store=store.state,
            delivery=SimpleNamespace(sinks=(sink,)),
            fallback_chain=SimpleNamespace(method=method, dropped=12),
        )
        return await exposition_of(service)

    return asyncio.run(exposed()).decode()


def exposed(folder: Path) -> dict[str, Exposed]:
    """Return each metric by its name."""
    found: dict[str, Exposed] = {}
    for family in text_string_to_metric_families(exposition(folder)):
        for sample in family.samples:
            found[sample.name] = Exposed(
                sample.name,
                family.type,
                tuple(sample.labels),
                family.documentation,
                sample.labels,
                sample.value,
            )
    return found
