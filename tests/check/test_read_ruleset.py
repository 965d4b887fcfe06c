"""Reading the rules that iptables stores in its own form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.check import read_ruleset, xtables
from ocsf_nft.check.bounded_command import NoAnswerError
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.errors import FenceError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from pathlib import Path


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

    monkeypatch.setattr(read_ruleset, "_saved", saved)
    extension = {"xt": {"type": "match", "name": "comment"}}
    objects = [*_objects("filter", {"counter": None}), *_objects("nat", extension)]
    _, unread = read_ruleset._decoded(Namespace(), from_json({"nftables": objects}))
    assert unread == [
        "rules of table ip nat are iptables' own, and can't be read: there is no such program"
    ]
    assert asked == [("iptables-nft-save", "nat")]


def test_check_takes_what_iptables_decodes_where_it_lists_the_same_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extension = {"xt": {"type": "match", "name": "string"}}
    listed = from_json({"nftables": _objects("filter", extension, {"drop": None})})
    (chain,) = listed.chains.values()
    line = "-A INPUT -m string -j DROP"
    for lines, text in (((line,), line), ((line, line), None), ((), None)):
        saved = xtables.read("\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines]))
        monkeypatch.setattr(read_ruleset, "_saved", lambda *_, saved=saved: saved)
        decoded, unread = read_ruleset._decoded(Namespace(), listed)
        assert unread == []
        (rule,) = decoded.chains[chain.key].rules
        assert rule.text == text


def test_check_refuses_a_listing_that_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for listed in (b"", b"{", b'{"nftables": ["\xff"]}'):
        monkeypatch.setattr(read_ruleset, "answer", lambda *_, listed=listed: listed)
        with pytest.raises(NoAnswerError, match="lists the ruleset in a form that can't be read"):
            read_ruleset.read(Namespace())


def test_check_knows_the_legacy_tables_of_a_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(read_ruleset, "_NET", tmp_path)
    (tmp_path / "ip_tables_names").write_text("nat\nother\nfilter\n")
    assert read_ruleset.legacy_tables(Namespace(), "ip") == ("nat", "filter")
    assert read_ruleset.legacy_tables(Namespace(), "ip6") == ()
