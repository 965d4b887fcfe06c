"""Reading the rules that iptables stores in its own form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocsf_nft.check import reading
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.errors import FenceError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    import pytest


def _objects(table: str, *statements: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"family": "ip", "table": table}
    return [
        {"chain": {**place, "name": "INPUT"}},
        {"rule": {**place, "chain": "INPUT", "handle": 1, "expr": [*statements]}},
    ]


def test_check_reads_the_tables_that_hold_extensions_of_iptables_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    def saved(_namespace: object, program: str, table: str) -> None:
        asked.append((program, table))
        raise FenceError("there is no such program")

    monkeypatch.setattr(reading, "_saved", saved)
    extension = {"xt": {"type": "match", "name": "comment"}}
    objects = [*_objects("filter", {"counter": None}), *_objects("nat", extension)]
    _, unread = reading._decoded(Namespace(), from_json({"nftables": objects}))
    assert unread == [
        "rules of table ip nat are iptables' own, and can't be read: there is no such program"
    ]
    assert asked == [("iptables-nft-save", "nat")]
