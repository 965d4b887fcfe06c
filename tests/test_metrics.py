"""What Prometheus reads: names, labels and values are a contract with dashboards."""

from __future__ import annotations

from ocsf_nft.accounting.balance import Balance
from ocsf_nft.accounting.book import Lost
from ocsf_nft.metrics import exposition
from ocsf_nft.service.status import Status


def _status(sandbox: str, *, refused: int = 100, is_watched: bool = True) -> Status:
    balance = Balance(
        sandbox=sandbox,
        rule="egress",
        refused=refused,
        reported=80,
        overflowed=30,
        in_flight=15,
        lost=7,
    )
    return Status(
        sandbox=sandbox,
        is_watched=is_watched,
        absent=(),
        balances=(balance,),
        lost=(Lost("nflog", 2, 9),),
    )


def test_each_number_of_each_rule_and_source_has_its_metric() -> None:
    lines = exposition([_status("one"), _status("two", refused=90, is_watched=False)])
    samples = {line for line in lines.decode().splitlines() if not line.startswith("#")}
    of_rule, of_source = '{rule="egress",sandbox="one"}', '{sandbox="one",source="nflog"}'
    assert {line for line in samples if '"one"' in line} == {
        f"ocsf_nft_refused_packets_total{of_rule} 100.0",
        f"ocsf_nft_reported_packets_total{of_rule} 80.0",
        f"ocsf_nft_overflowed_packets_total{of_rule} 30.0",
        f"ocsf_nft_in_flight_packets{of_rule} 15.0",
        f"ocsf_nft_lost_records{of_rule} 7.0",
        f"ocsf_nft_imbalance_packets{of_rule} 5.0",
        f"ocsf_nft_gap_records_total{of_source} 9.0",
        f"ocsf_nft_gaps_total{of_source} 2.0",
        'ocsf_nft_watched{sandbox="one"} 1.0',
    }
    assert 'ocsf_nft_imbalance_packets{rule="egress",sandbox="two"} -5.0' in samples
    assert 'ocsf_nft_watched{sandbox="two"} 0.0' in samples
