"""Tests of the ruleset that is read from `nft -j list ruleset`."""

from __future__ import annotations

from typing import Any

from ocsf_nft.check.ruleset import UNKNOWN, BaseSpec, ChainKey, Ruleset, from_json

_TABLE = {"family": "inet", "table": "t"}
_CHAIN = ChainKey("nft", "inet", "t", "c")


def _ruleset(*objects: dict[str, Any]) -> Ruleset:
    return from_json({"nftables": list(objects)})


def test_ruleset_has_the_flags_of_each_table() -> None:
    for flags, found in (
        ("owner", {"owner"}),
        (["owner", "persist"], {"owner", "persist"}),
        (["owner", 1], {"owner"}),
        (None, set()),
    ):
        table = {"table": {"family": "inet", "name": "t", "flags": flags}}
        assert _ruleset(table).tables == {("inet", "t"): found}


def test_ruleset_chain_is_a_base_chain_with_hook_and_priority() -> None:
    body = {**_TABLE, "name": "c", "type": "filter", "hook": "ingress", "prio": -5, "dev": "eth0"}
    for changes, base in (
        (
            {},
            BaseSpec(
                kind="filter", hook="ingress", priority=-5, policy="accept", devices=("eth0",)
            ),
        ),
        ({"hook": None}, None),
        ({"prio": None}, None),
        ({"prio": "filter"}, None),
    ):
        found = _ruleset({"chain": body | changes})
        assert found.chains[_CHAIN].base == base, changes


def test_ruleset_rules_are_in_order_and_may_come_before_their_chain() -> None:
    chain: dict[str, Any] = {"chain": {**_TABLE, "name": "c"}}
    rules = [{"rule": {**_TABLE, "chain": "c", "handle": handle}} for handle in (7, 3, "x")]
    for objects in ([chain, *rules], [*rules, chain]):
        assert [rule.handle for rule in _ruleset(*objects).chains[_CHAIN].rules] == [7, 3, None]
    assert _ruleset(*rules).chains == {}


def test_ruleset_statements_of_an_unknown_form_are_unknown() -> None:
    chain, two = {"chain": {**_TABLE, "name": "c"}}, {"accept": None, "drop": None}
    for expressions, statements in (
        ([{"accept": None}, {"drop": 1}], (("accept", None), ("drop", 1))),
        ([two, {}, "accept", 5], tuple(("unknown", each) for each in (two, {}, "accept", 5))),
        ({"accept": None}, ()),
        (None, ()),
    ):
        rule = {"rule": {**_TABLE, "chain": "c", "expr": expressions}}
        (found,) = _ruleset(chain, rule).chains[_CHAIN].rules
        assert found.statements == statements


def test_ruleset_set_that_rules_change_has_an_unknown_element() -> None:
    sets: list[dict[str, Any]] = [
        {kind: {**_TABLE, "name": name, "elem": elements}}
        for kind, name, elements in (
            ("set", "changed", ["a"]), ("map", "mapped", []), ("set", "same", ["b"]),
            ("set", "unread", "c"),
        )
    ]  # fmt: skip
    changing = [
        {"set": {"op": "add", "elem": "x", "set": "@changed"}},
        {"map": {"op": "add", "elem": "x", "data": "y", "map": "@mapped"}},
        {"set": {"op": "add", "elem": "x", "set": "@unread"}},
        {"set": {"set": 5}},
        {"set": "@same"},
        {"counter": {"set": "@same"}},
    ]
    rule: dict[str, Any] = {"rule": {**_TABLE, "chain": "c", "expr": changing}}
    other = {"rule": {**_TABLE, "table": "u", "chain": "c", "expr": [{"set": {"set": "@same"}}]}}
    for objects in ([*sets, rule, other], [rule, other, *sets]):
        found = _ruleset(*objects).sets
        assert {name: each.elements for (_, _, name), each in found.items()} == {
            "changed": ["a", UNKNOWN], "mapped": [UNKNOWN], "same": ["b"], "unread": None,
        }  # fmt: skip


def test_ruleset_set_without_elements_is_empty_and_has_its_size() -> None:
    for size, known in ((5, 5), ("5", None), (None, None)):
        (found,) = _ruleset({"set": {**_TABLE, "name": "s", "size": size}}).sets.values()
        assert (found.elements, found.size) == ([], known)


def test_ruleset_leaves_out_objects_of_an_unknown_form() -> None:
    empty: tuple[Any, ...] = (None, [], {"nftables": None}, {"nftables": {"chain": {}}})
    for listed in empty:
        assert from_json(listed).chains == {}
    chain = {"chain": {**_TABLE, "name": "c"}}
    listed = {"nftables": ["chain", {"chain": None}, {"metainfo": {}}, chain]}
    assert list(from_json(listed).chains) == [_CHAIN]
