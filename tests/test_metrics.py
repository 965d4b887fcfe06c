"""Prometheus metrics: names, labels and values are a contract with dashboards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest

from ocsf_nft.attribution.fallback_chain import TopMethod
from ocsf_nft.flows.sandbox_account import Balance
from ocsf_nft.metrics import exposition
from ocsf_nft.service.status import Status
from ocsf_nft.state.change import DroppedRecords
from tests.deploy import exposed

if TYPE_CHECKING:
    from pathlib import Path


def _status(sandbox: str, *, refused: int = 100, is_watched: bool = True) -> Status:
    balance = Balance(
        sandbox=sandbox,
        rule="egress",
        refused=refused,
        reported=80,
        aggregated=30,
        pending=15,
        dropped=7,
    )
    return Status(
        sandbox=sandbox,
        is_watched=is_watched,
        absent=(),
        balances=(balance,),
        dropped_records=(DroppedRecords("nflog", 2, 9),),
    )


def test_sandbox_that_can_not_be_watched_has_a_metric(tmp_path: Path) -> None:
    lines = exposed.exposition(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("ocsf_nft_watched{")] == [
        'ocsf_nft_watched{sandbox="agent"} 1.0', 'ocsf_nft_watched{sandbox="broken"} 0.0',
    ]  # fmt: skip


def test_each_number_of_each_rule_and_source_has_its_metric() -> None:
    lines = exposition([_status("one"), _status("two", refused=90, is_watched=False)])
    samples = {line for line in lines.decode().splitlines() if not line.startswith("#")}
    of_rule = '{mode="enforcing",rule="egress",sandbox="one"}'
    of_source = '{sandbox="one",source="nflog"}'
    assert {line for line in samples if '"one"' in line} == {
        f"ocsf_nft_refused_packets_total{of_rule} 100.0",
        f"ocsf_nft_allowed_packets_total{of_rule} 0.0",
        f"ocsf_nft_reported_packets_total{of_rule} 80.0",
        f"ocsf_nft_aggregated_packets_total{of_rule} 30.0",
        f"ocsf_nft_pending_packets{of_rule} 15.0",
        f"ocsf_nft_dropped_records{of_rule} 7.0",
        f"ocsf_nft_counter_mismatch_packets{of_rule} 5.0",
        f"ocsf_nft_gap_records_total{of_source} 9.0",
        f"ocsf_nft_gaps_total{of_source} 2.0",
        'ocsf_nft_watched{sandbox="one"} 1.0',
        'ocsf_nft_fence_active{sandbox="one"} 1.0',
    }
    of_two = '{mode="enforcing",rule="egress",sandbox="two"}'
    assert f"ocsf_nft_counter_mismatch_packets{of_two} -5.0" in samples
    assert 'ocsf_nft_watched{sandbox="two"} 0.0' in samples


def test_allowed_packets_do_not_count_as_refused() -> None:
    status = _status("one", refused=0)
    (balance,) = status.balances
    permitted = replace(balance, mode="permissive", allowed=100)
    shown = exposition([replace(status, mode="permissive", balances=(permitted,))]).decode()
    of_rule = '{mode="permissive",rule="egress",sandbox="one"}'
    for line in (
        f"ocsf_nft_refused_packets_total{of_rule} 0.0",
        f"ocsf_nft_allowed_packets_total{of_rule} 100.0",
        f"ocsf_nft_reported_packets_total{of_rule} 80.0",
        f"ocsf_nft_counter_mismatch_packets{of_rule} 5.0",
    ):
        assert line in shown.splitlines()


def test_altered_fence_is_not_active_and_unknown_one_has_no_metric() -> None:
    found = [replace(_status("one"), verdict="differs"), replace(_status("two"), verdict=None)]
    shown = exposition(found).decode()
    assert 'ocsf_nft_fence_active{sandbox="one"} 0.0' in shown
    assert 'ocsf_nft_fence_active{sandbox="two"}' not in shown


@pytest.mark.parametrize("method", get_args(TopMethod))
def test_only_the_active_attribution_method_has_the_value_1(tmp_path: Path, method: str) -> None:
    shown = exposed.exposition(tmp_path, method=method).splitlines()
    assert {line for line in shown if line.startswith("ocsf_nft_attribution_method{")} == {
        f'ocsf_nft_attribution_method{{method="{each}"}} {float(each == method)}'
        for each in ("capture", "socket", "user")
    }
    assert "ocsf_nft_capture_dropped_events_total 12.0" in shown


def test_findings_have_labels_with_few_values(tmp_path: Path) -> None:
    shown = exposed.exposition(tmp_path).splitlines()
    labels = '{alert="true",code="bypass-finding",sandbox="agent",severity="high"}'
    assert f"ocsf_nft_findings_total{labels} 2.0" in shown
    assert f"ocsf_nft_finding_timestamp_seconds{labels} 1.7645e+09" in shown
