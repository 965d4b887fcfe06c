"""A ruleset is its makers' choice: whatever it holds, it is judged in bounded time, and quoted."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.check import allow_commands, hook_path
from ocsf_nft.check.chain_owner import OURS, owner
from ocsf_nft.check.chain_walk import TooLargeError, Walker
from ocsf_nft.check.diagnosis import Question, judge
from ocsf_nft.check.leftovers import leftovers
from ocsf_nft.check.ruleset import Key, from_json
from ocsf_nft.fence import nft
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

_QUESTION = Question(
    namespace=Namespace(),
    device="vmtap-1",
    subnets=(subnet("172.16.0.1/30"), subnet("fd00:16::1/64")),
    port=3128,
)
_BASE = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}


def _chain(name: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "t", "name": name, **more}}


def _rule(chain: str, *expressions: Any) -> dict[str, Any]:
    place = {"family": "inet", "table": "t", "chain": chain, "handle": 1}
    return {"rule": {**place, "expr": list(expressions)}}


def _endings(objects: list[Any], budget: int = 2_000_000) -> list[hook_path.Ending]:
    ruleset = from_json({"nftables": objects})
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset, budget)
    return [
        ending for flow in _QUESTION.flows() for ending in hook_path.endings(flow, hooks, walker)
    ]


def test_chains_that_branch_without_end_are_walked_once_each() -> None:
    depth = 15
    objects = [_chain("base", **_BASE), _rule("base", {"jump": {"target": "c0"}})]
    for number in range(depth):
        objects.append(_chain(f"c{number}"))
        objects += [_rule(f"c{number}", {"jump": {"target": f"c{number + 1}"}})] * 50
    objects += [_chain(f"c{depth}"), _rule(f"c{depth}", {"drop": None})]
    started = time.monotonic()
    assert all(ending.is_certain for ending in _endings(objects))
    assert time.monotonic() - started < 30


def test_chains_that_lead_back_to_themselves_end() -> None:
    objects = [
        _chain("base", **_BASE),
        _rule("base", {"jump": {"target": "a"}}),
        _chain("a"),
        _rule("a", {"goto": {"target": "base"}}),
    ]
    assert _endings(objects)  # it can't be told


def test_a_ruleset_that_is_too_large_is_called_so() -> None:
    objects = [_chain("base", **_BASE), *([_rule("base", {"counter": None})] * 1000)]
    with pytest.raises(TooLargeError):
        _endings(objects, budget=500)


def test_large_set_is_read_at_three_times_its_size() -> None:
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    one = {"match": {"op": "==", "left": port, "right": {"set": list(range(1000, 2000))}}}
    objects = [_chain("base", **_BASE), _rule("base", one)]
    assert _endings(objects, budget=3100) == []
    with pytest.raises(TooLargeError):
        _endings(objects, budget=2999)


def test_what_can_not_be_followed_is_not_called_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [_chain("base", **_BASE), _rule("base", {"counter": None})]
    assert [each.name for each in judge(from_json({"nftables": objects}), _QUESTION)] == [
        "accepted"
    ]
    for trouble in (TooLargeError, RecursionError):

        def fail(*_: object, error: type[Exception] = trouble) -> None:
            raise error

        monkeypatch.setattr(Walker, "walk", fail)
        (finding,) = judge(from_json({"nftables": objects}), _QUESTION)
        assert (finding.name, finding.severity) == ("ruleset", "blocked")


def test_a_rule_that_two_base_chains_lead_to_is_told_for_each() -> None:
    objects = [
        _chain("through", **_BASE),
        _rule("through", {"jump": {"target": "shared"}}),
        _chain("local", **{**_BASE, "hook": "input"}),
        _rule("local", {"jump": {"target": "shared"}}),
        _chain("shared"),
        _rule("shared", {"drop": None}),
    ]
    found = list(judge(from_json({"nftables": objects}), _QUESTION))
    assert [each.name for each in found] == ["drops", "drops"]
    commands = {command for each in found for command in each.commands}
    assert any("inet t through" in command for command in commands)
    assert any("inet t local" in command for command in commands)


def test_a_large_set_is_looked_into_and_not_gone_through() -> None:
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
    found = _endings(objects)
    assert found
    assert all(ending.is_certain for ending in found)


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
        assert list(judge(ruleset, _QUESTION)), statement
        assert leftovers(ruleset, {}, _QUESTION) == [], statement


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
def test_whatever_a_rule_holds_it_is_judged(expressions: list[Any], elements: Any) -> None:
    objects = [
        {"set": {"family": "inet", "table": "t", "name": "s", "elem": elements}},
        _chain("base", **_BASE),
        _rule("base", *expressions),
    ]
    for hook in ("prerouting", "input", "output", "ingress"):
        objects.append(_chain(hook, **{**_BASE, "hook": hook, "dev": elements}))
        objects.append(_rule(hook, *expressions))
    _endings(objects)


@given(listed=_JSON)
def test_whatever_nft_lists_is_taken_or_left(listed: Any) -> None:
    from_json(listed)
    from_json({"nftables": [listed, {"chain": listed}, {"rule": listed}, {"flowtable": listed}]})


_HOSTILE = st.sampled_from(
    ["; flush ruleset", "$(reboot)", "`reboot`", "a b", "-j", "\x1b[2J", "a\nb", "'; reboot '",
     '"', "a{", "\udc80", "\u202e", ""]
)  # fmt: skip


@given(
    table=_HOSTILE | st.text(), chain=_HOSTILE | st.text(), family=st.sampled_from(["inet", "ip"])
)
def test_no_name_that_is_not_plain_gets_into_a_command_or_to_a_terminal(
    table: str, chain: str, family: str
) -> None:
    objects: list[Any] = [
        {"chain": {"family": family, "table": table, "name": chain, **_BASE, "policy": "drop"}}
    ]
    for finding in judge(from_json({"nftables": objects}), _QUESTION):
        assert finding.meaning.isprintable()
        is_plain = allow_commands.is_plain(table) and allow_commands.is_plain(chain)
        for command in finding.commands:
            assert is_plain, command
            assert command.isprintable()


def test_a_rule_of_a_table_that_nft_can_not_be_asked_about_is_told_in_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise AssertionError("nft was asked")

    monkeypatch.setattr(nft, "find", refuse)
    objects = [
        {"chain": {"family": "inet", "table": "a; flush ruleset", "name": "c", **_BASE}},
        {"rule": {"family": "inet", "table": "a; flush ruleset", "chain": "c", "handle": 7,
                  "expr": [{"drop": None}]}},
    ]  # fmt: skip
    (finding,) = judge(from_json({"nftables": objects}), _QUESTION)
    assert finding.place is not None
    assert (finding.place.handle, finding.place.rule) == (7, '[{"drop":null}]')
    assert finding.commands == ()


def test_a_table_that_a_program_owns_gets_no_command() -> None:
    objects: list[Any] = [
        {"table": {"family": "inet", "name": "t", "flags": ["owner", "persist"]}},
        _chain("base", **{**_BASE, "policy": "drop"}),
    ]
    (finding,) = judge(from_json({"nftables": objects}), _QUESTION)
    assert finding.commands == ()
    assert finding.remedy is not None
    assert "only its owner" in finding.remedy


@pytest.mark.parametrize(
    ("family", "table", "chain", "whose"),
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
def test_whose_a_chain_is(family: str, table: str, chain: str, whose: str) -> None:
    ruleset = from_json(
        {"nftables": [{"chain": {"family": family, "table": table, "name": chain}}]}
    )
    assert owner(ruleset.chains[Key("nft", family, table, chain)], ruleset) == whose
