"""Tests that any ruleset is judged in bounded time, and that its names are quoted."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.check import firewalls, hook_path
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.blocking_rules import judge
from ocsf_nft.check.chain_walk import TooLargeError, Walker
from ocsf_nft.check.firewalls import OURS, owner
from ocsf_nft.check.leftovers import find_leftovers
from ocsf_nft.check.ruleset import ChainKey, from_json
from ocsf_nft.fence import nft
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

_SCOPE = CheckScope(
    namespace=Namespace(),
    device="vmtap-1",
    subnets=(subnet("172.16.0.1/30"), subnet("fd00:16::1/64")),
    port=3128,
)
_BASE = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}


def _chain(name: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "t", "name": name, **more}}


def _rule(chain: str, *expressions: Any) -> dict[str, Any]:
    key = {"family": "inet", "table": "t", "chain": chain, "handle": 1}
    return {"rule": {**key, "expr": list(expressions)}}


def _flow_stops(objects: list[Any], budget: int = 2_000_000) -> list[hook_path.FlowStop]:
    ruleset = from_json({"nftables": objects})
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset, budget)
    return [
        flow_stop
        for flow in _SCOPE.flows()
        for flow_stop in hook_path.flow_stops(flow, hooks, walker)
    ]


def test_walker_walks_each_branching_chain_once() -> None:
    depth = 15
    objects = [_chain("base", **_BASE), _rule("base", {"jump": {"target": "c0"}})]
    for number in range(depth):
        objects.append(_chain(f"c{number}"))
        objects += [_rule(f"c{number}", {"jump": {"target": f"c{number + 1}"}})] * 50
    objects += [_chain(f"c{depth}"), _rule(f"c{depth}", {"drop": None})]
    started = time.monotonic()
    assert all(flow_stop.is_certain for flow_stop in _flow_stops(objects))
    assert time.monotonic() - started < 30


def test_walker_ends_in_a_loop_of_chains() -> None:
    objects = [
        _chain("base", **_BASE),
        _rule("base", {"jump": {"target": "a"}}),
        _chain("a"),
        _rule("a", {"goto": {"target": "base"}}),
    ]
    assert _flow_stops(objects)  # the result is uncertain


def test_walker_raises_an_error_for_a_too_large_ruleset() -> None:
    objects = [_chain("base", **_BASE), *([_rule("base", {"counter": None})] * 1000)]
    with pytest.raises(TooLargeError):
        _flow_stops(objects, budget=500)


def test_large_set_costs_three_times_its_size() -> None:
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    one = {"match": {"op": "==", "left": port, "right": {"set": list(range(1000, 2000))}}}
    objects = [_chain("base", **_BASE), _rule("base", one)]
    assert _flow_stops(objects, budget=3100) == []
    with pytest.raises(TooLargeError):
        _flow_stops(objects, budget=2999)


def test_judge_reports_a_ruleset_that_can_not_be_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [_chain("base", **_BASE), _rule("base", {"counter": None})]
    assert [each.name for each in judge(from_json({"nftables": objects}), _SCOPE)] == ["accepted"]
    for error_type in (TooLargeError, RecursionError):

        def fail(*_: object, error: type[Exception] = error_type) -> None:
            raise error

        monkeypatch.setattr(Walker, "walk", fail)
        (finding,) = judge(from_json({"nftables": objects}), _SCOPE)
        assert (finding.name, finding.severity) == ("ruleset", "blocked")


def test_judge_reports_a_shared_rule_for_each_base_chain() -> None:
    objects = [
        _chain("through", **_BASE),
        _rule("through", {"jump": {"target": "shared"}}),
        _chain("local", **{**_BASE, "hook": "input"}),
        _rule("local", {"jump": {"target": "shared"}}),
        _chain("shared"),
        _rule("shared", {"drop": None}),
    ]
    found = list(judge(from_json({"nftables": objects}), _SCOPE))
    assert [each.name for each in found] == ["drops", "drops"]
    commands = {command for each in found for command in each.commands}
    assert any("inet t through" in command for command in commands)
    assert any("inet t local" in command for command in commands)


def test_large_set_is_searched_by_bisection() -> None:
    count = 100_000
    elements: list[Any] = [{"prefix": {"addr": f"10.{n >> 8 & 255}.{n & 255}.0", "len": 24}}
                for n in range(65_536)]  # fmt: skip
    elements += [f"11.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count)]
    elements.append({"prefix": {"addr": "172.16.0.0", "len": 29}})
    objects = [
        {"set": {"family": "inet", "table": "t", "name": "s", "elem": elements}},
        _chain("base", **_BASE),
        _rule(
            "base",
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                    "right": "@s",
                }
            },
            {"drop": None},
        ),
    ]
    found = _flow_stops(objects)
    assert found
    assert all(flow_stop.is_certain for flow_stop in found)


def test_check_judges_statements_with_bodies_of_any_type() -> None:
    odd: tuple[Any, ...] = (None, 5, True, "x", [], [1], {}, {"a": 1, "b": 2})
    rights = (*odd, {"prefix": 5}, {"prefix": {}}, {"range": 5}, {"range": [1]}, {"set": 5},
              {"range": [1, 2, 3]}, {"elem": 5}, {"set": [[]]}, {"concat": 5})  # fmt: skip
    kinds = ("meta", "payload", "ct", "fib", "exthdr", "concat", "&", "|", "map", "x")
    usual = ({"meta": {"key": "mark"}}, {"payload": {"protocol": "ip", "field": "saddr"}},
             {"ct": {"key": "state"}}, {"meta": {"key": "iifname"}})  # fmt: skip
    lefts = (*odd, *({kind: body} for kind in kinds for body in odd))
    keys = ("key", "value", "target", "name", "type", "stmt", "elem", "set", "data", "op", "map")
    bodies = [
        *odd,
        *({"op": "==", "left": left, "right": 5} for left in lefts),
        *({"op": operator, "left": left, "right": right}
          for operator in ("==", "in", "<") for left in usual for right in rights),
        *({key: body} for key in keys for body in (*odd, *usual)),
    ]  # fmt: skip
    statements = ("match", "mangle", "vmap", "jump", "goto", "set", "map", "xt", "reject", "snat",
                  "synproxy", "queue", "limit", "x")  # fmt: skip
    for statement in statements:
        rules = [_rule("base", {statement: body}) for body in bodies]
        if statement != "match":
            rules = [rule for rule in rules if "left" not in str(rule)]
        ruleset = from_json({"nftables": [_chain("base", **_BASE), *rules]})
        assert list(judge(ruleset, _SCOPE)), statement
        assert find_leftovers(ruleset, {}, _SCOPE) == [], statement


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["match", "op", "left", "right", "meta", "key", "payload", "protocol", "field",
                 "set", "elem", "val", "vmap", "data", "jump", "goto", "target", "xt", "name",
                 "type", "mangle", "value", "&", "|", "concat", "prefix", "addr", "len", "range",
                 "ct", "fib", "flags", "result", "limit", "stmt", "exthdr", "dir", "accept", "drop"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(expressions=st.lists(_JSON, max_size=4), elements=_JSON)
def test_walker_accepts_any_json_in_a_rule(expressions: list[Any], elements: Any) -> None:
    objects = [
        {"set": {"family": "inet", "table": "t", "name": "s", "elem": elements}},
        _chain("base", **_BASE),
        _rule("base", *expressions),
    ]
    for hook in ("prerouting", "input", "output", "ingress"):
        objects.append(_chain(hook, **{**_BASE, "hook": hook, "dev": elements}))
        objects.append(_rule(hook, *expressions))
    _flow_stops(objects)


@given(listed=_JSON)
def test_ruleset_accepts_any_json(listed: Any) -> None:
    from_json(listed)
    from_json({"nftables": [listed, {"chain": listed}, {"rule": listed}, {"flowtable": listed}]})


_HOSTILE = st.sampled_from(
    ["; flush ruleset", "$(reboot)", "`reboot`", "a b", "-j", "\x1b[2J", "a\nb", "'; reboot '",
     '"', "a{", "\udc80", "\u202e", ""]
)  # fmt: skip


@given(
    table=_HOSTILE | st.text(), chain=_HOSTILE | st.text(), family=st.sampled_from(["inet", "ip"])
)
def test_findings_have_only_plain_names_in_commands_and_printable_text(
    table: str, chain: str, family: str
) -> None:
    objects: list[Any] = [
        {"chain": {"family": family, "table": table, "name": chain, **_BASE, "policy": "drop"}}
    ]
    for finding in judge(from_json({"nftables": objects}), _SCOPE):
        assert finding.meaning.isprintable()
        is_plain = firewalls.is_plain(ChainKey("nft", family, table, chain))
        for command in finding.commands:
            assert is_plain, command
            assert command.isprintable()


def test_rule_in_a_table_without_a_plain_name_is_shown_as_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise AssertionError("nft was run")

    monkeypatch.setattr(nft, "find", refuse)
    objects = [
        {"chain": {"family": "inet", "table": "a; flush ruleset", "name": "c", **_BASE}},
        {"rule": {"family": "inet", "table": "a; flush ruleset", "chain": "c", "handle": 7,
                  "expr": [{"drop": None}]}},
    ]  # fmt: skip
    (finding,) = judge(from_json({"nftables": objects}), _SCOPE)
    location = finding.location
    assert location is not None
    assert (location.handle, location.rule) == (7, '[{"drop":null}]')
    assert finding.commands == ()


def test_chain_in_an_owned_table_has_no_command() -> None:
    objects: list[Any] = [
        {"table": {"family": "inet", "name": "t", "flags": ["owner", "persist"]}},
        _chain("base", **{**_BASE, "policy": "drop"}),
    ]
    (finding,) = judge(from_json({"nftables": objects}), _SCOPE)
    assert finding.commands == ()
    assert finding.remedy is not None
    assert "only its owner" in finding.remedy


@pytest.mark.parametrize(
    ("family", "table", "chain", "expected"),
    [
        ("inet", "firewalld", "filter_INPUT", "firewalld"),
        ("ip", "filter", "ufw-user-forward", "ufw"),
        ("ip", "filter", "DOCKER-USER", "Docker"),
        ("ip", "nat", "KUBE-SERVICES", "kube-proxy"),
        ("ip", "kube-proxy", "filter-forward", "kube-proxy"),
        ("ip", "filter", "cali-FORWARD", "Calico"),
        ("ip", "mangle", "CILIUM_PRE_mangle", "Cilium"),
        ("ip", "filter", "LIBVIRT_FWI", "libvirt"),
        ("inet", "ocsf_nft", "output", OURS),
        ("inet", "ocsf_nft_vmtap-1", "forward", OURS),
        ("inet", "ocsf_nftables", "forward", "nftables"),
        ("inet", "site", "DOCKER-USER", "nftables"),
    ],
)
def test_owner_of_a_chain(family: str, table: str, chain: str, expected: str) -> None:
    ruleset = from_json(
        {"nftables": [{"chain": {"family": family, "table": table, "name": chain}}]}
    )
    assert owner(ruleset.chains[ChainKey("nft", family, table, chain)], ruleset) == expected
