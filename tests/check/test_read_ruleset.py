"""Tests of reading the rules that iptables stores in its own form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.check import read_ruleset, xtables
from ocsf_nft.check.bounded_command import CommandError
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.errors import FenceError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from pathlib import Path


def _objects(table: str, *statements: dict[str, Any]) -> list[dict[str, Any]]:
    table_key = {"family": "ip", "table": table}
    return [
        {"chain": {**table_key, "name": "INPUT"}},
        {"rule": {**table_key, "chain": "INPUT", "handle": 1, "expr": [*statements]}},
    ]


def test_iptables_decodes_only_tables_with_extensions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requested: list[tuple[str, str, str]] = []

    def saved(_namespace: object, backend: str, family: str, table: str) -> None:
        requested.append((backend, family, table))
        raise FenceError("there is no such program")

    monkeypatch.setattr(read_ruleset, "_saved", saved)
    extension = {"xt": {"type": "match", "name": "comment"}}
    objects = [*_objects("filter", {"counter": None}), *_objects("nat", extension)]
    _, unread = read_ruleset._decoded(Namespace(), from_json({"nftables": objects}))
    assert unread == [
        "table ip nat has extensions of iptables that can't be read: there is no such program"
    ]
    assert requested == [("nft", "ip", "nat")]


def test_iptables_decoding_is_used_if_both_list_the_same_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extension = {"xt": {"type": "match", "name": "string"}}
    listed = from_json({"nftables": _objects("filter", extension, {"drop": None})})
    (chain,) = listed.chains.values()
    line = "-A INPUT -m string -j DROP"
    for lines, text in (((line,), line), ((line, line), None), ((), None)):
        text_of_all = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines])
        saved = xtables.chains(text_of_all, "ip", "nft")
        monkeypatch.setattr(read_ruleset, "_saved", lambda *_, saved=saved: saved)
        decoded, unread = read_ruleset._decoded(Namespace(), listed)
        assert unread == []
        (rule,) = decoded.chains[chain.key].rules
        assert rule.text == text


def test_read_raises_an_error_for_a_listing_that_is_not_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for listed in (b"", b"{", b'{"nftables": ["\xff"]}'):
        monkeypatch.setattr(read_ruleset, "command_output", lambda *_, listed=listed: listed)
        with pytest.raises(CommandError, match="lists the ruleset in a form that can't be read"):
            read_ruleset.read(Namespace())


def test_legacy_tables_are_read_from_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(read_ruleset, "_NET", tmp_path)
    (tmp_path / "ip_tables_names").write_text("nat\nother\nfilter\n")
    assert read_ruleset.legacy_tables(Namespace(), "ip") == ("nat", "filter")
    assert read_ruleset.legacy_tables(Namespace(), "ip6") == ()
