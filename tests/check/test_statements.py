"""Tests of the effect of a rule's statements on a packet, as nft lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import hook_path
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.blocking_rules import judge
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from ocsf_nft.check.ruleset import Ruleset

#: nft isn't run for the rules of a table with this name.
_TABLE: Final = {"family": "ip", "table": "a table"}
_SCOPE: Final = CheckScope(
    namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
)
_LIMITED: Final = {"limit": {"rate": 1}}
_DROP: Final[dict[str, Any]] = {"drop": None}
_TCP: Final = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
_DPORT: Final = {"payload": {"protocol": "tcp", "field": "dport"}}


def _match(left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _xt(name: str, kind: str = "target") -> dict[str, Any]:
    return {"xt": {"type": kind, "name": name}}


def _ruleset(
    *rules: list[dict[str, Any]],
    later: list[dict[str, Any]] | None = None,
    hook: str = "forward",
    priority: int = 0,
    policy: str = "accept",
    more: list[dict[str, Any]] | None = None,
) -> Ruleset:
    """Return a ruleset with a base chain, and another one after it with the rule ``later``.

    ``more`` are other objects.
    """
    base = {"type": "filter", "hook": hook, "prio": priority, "policy": policy}
    objects: list[dict[str, Any]] = [
        {"map": {**_TABLE, "name": "unread", "elem": None}},
        {"chain": {**_TABLE, "name": "base", **base}},
        *({"rule": {**_TABLE, "chain": "base", "handle": handle, "expr": rule}}
          for handle, rule in enumerate(rules, 1)),
        {"chain": {**_TABLE, "name": "later", **base, "prio": 500, "policy": "accept"}},
        *({"rule": {**_TABLE, "chain": "later", "expr": rule}} for rule in [later] if rule),
        *(more or ()),
    ]  # fmt: skip
    return from_json({"nftables": objects})


def _ends(ruleset: Ruleset) -> set[tuple[str, bool]]:
    """Return verb and is_certain of the stops of the VM's TCP packets to port 443."""
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    return {
        (flow_stop.stop.verb, flow_stop.is_certain)
        for flow in _SCOPE.flows()
        if flow.label == "tcp 443" and flow.packet.direction == "original"
        for flow_stop in hook_path.flow_stops(flow, hooks, walker)
    }


def test_iptables_targets_have_effects_by_their_names() -> None:
    certain, uncertain = {("drops", True)}, {("drops", False)}
    mark = _match({"meta": {"key": "mark"}}, 5)
    for rules, ends in (
        ([[_xt("REJECT")]], {("refuses", True)}),
        ([[_xt("DNAT")]], {("redirects", True)}),
        ([[_xt("REDIRECT")]], {("redirects", True)}),
        ([[_xt("SYNPROXY")]], {("answers itself", True)}),
        ([[_xt("REJECT"), _DROP]], {("refuses", True)}),
        ([[_LIMITED, _xt("REJECT")]], {("refuses", False)}),
        ([[_xt("LOG")], [_DROP]], certain),
        ([[_xt("LOG")]], set()),
        ([[_xt("SNAT")], [_DROP]], set()),
        ([[_xt("MASQUERADE")], [_DROP]], set()),
        ([[_xt("LED"), _DROP]], certain),
        ([[_xt("OTHER")]], {("may drop", False)}),
        ([[_xt("comment", "match"), _DROP]], uncertain),
        ([[{"xt": None}]], {("may drop", False)}),
        ([[mark, _DROP]], set()),
        ([[_xt("MARK")], [mark, _DROP]], uncertain),
        ([[_xt("CONNMARK")], [mark, _DROP]], uncertain),
        ([[_xt("REJECT")], [_xt("OTHER")]], {("refuses", True)}),
    ):
        assert _ends(_ruleset(*rules)) == ends, rules


def test_source_is_unknown_after_nat() -> None:
    source = _match({"payload": {"protocol": "ip", "field": "saddr"}}, "9.9.9.9")
    for statement, ends in (
        (_xt("SNAT"), {("drops", False)}),
        (_xt("MASQUERADE"), {("drops", False)}),
        ({"snat": {"addr": "9.9.9.9"}}, {("drops", False)}),
        ({"snat": {"family": "ip", "addr": "9.9.9.9"}}, {("drops", False)}),
        ({"snat": {"family": "ip6", "addr": "2001:db8::9"}}, set()),
        ({"masquerade": None}, {("drops", False)}),
        ({"accept": None}, set()),
    ):
        assert _ends(_ruleset([statement], later=[source, _DROP])) == ends, statement


def test_packets_that_leave_a_chain_by_different_rules_are_joined() -> None:
    mark = {"key": {"meta": {"key": "mark"}}, "value": 6}
    some = _match({"payload": {"protocol": "tcp", "field": "sport"}}, 40000)
    rules: list[list[dict[str, Any]]] = [
        [some, {"accept": None}],
        [{"mangle": mark}, {"accept": None}],
    ]
    for number, ends in ((6, {("drops", False)}), (0, {("drops", False)})):
        later = [_match({"meta": {"key": "mark"}}, number), _DROP]
        assert _ends(_ruleset(*rules, later=later)) == ends, number


def test_targets_may_turn_connection_tracking_off() -> None:
    untracked = [_match({"ct": {"key": "state"}}, "untracked"), _DROP]
    for name, ends in (
        ("CT", {("drops", False)}),
        ("NOTRACK", {("drops", False)}),
        ("LOG", set()),
    ):
        rules = _ruleset([_xt(name)], untracked, hook="prerouting", priority=-300)
        assert _ends(rules) == ends, name


def test_queue_and_tproxy_may_take_packets() -> None:
    queued = {("hands to a program", False)}
    proxied = {("redirects", False)}
    for statement, policy, ends in (
        ("queue", "accept", queued),
        ("queue", "drop", queued),
        ("tproxy", "accept", proxied),
        ("tproxy", "drop", {("drops", True)}),
        ("new statement", "accept", {("may drop", False)}),
    ):
        ruleset = _ruleset([_TCP, {statement: None}], policy=policy)
        assert _ends(ruleset) == ends, (statement, policy)
    assert _ends(_ruleset([{"queue": None}], [_DROP])) == queued
    assert _ends(_ruleset([{"queue": None}], later=[_DROP])) == queued | {("drops", True)}
    assert _ends(_ruleset([_LIMITED, {"queue": None}], [_DROP])) == queued | {("drops", False)}


def test_walker_follows_jumps_and_returns() -> None:
    mark = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 5}}
    accept: dict[str, Any] = {"accept": None}
    leave: dict[str, Any] = {"return": None}
    if_marked = [_match({"meta": {"key": "mark"}}, 5), _DROP]
    jump, goto = {"jump": {"target": "inner"}}, {"goto": {"target": "inner"}}
    certain, uncertain, none = {("drops", True)}, {("drops", False)}, set[tuple[str, bool]]()
    for rules, inner, later, ends in (
        ([[jump], [_DROP]], [[leave], [accept]], None, certain),
        ([[jump], [_DROP]], [[accept]], None, none),
        ([[jump], [_DROP]], [[_LIMITED, accept]], None, uncertain),
        ([[jump], [_DROP]], [[_LIMITED, leave], [accept]], None, uncertain),
        ([[jump], [accept]], [[_DROP]], None, certain),
        ([[_LIMITED, jump], [accept]], [[_DROP]], None, uncertain),
        ([[goto], [_DROP]], [], None, none),
        ([[goto], [_DROP]], [[leave]], None, none),
        ([[goto], [_DROP]], [[_LIMITED, leave], [accept]], None, none),
        ([[goto], [accept]], [[_DROP]], None, certain),
        ([[_LIMITED, goto], [_DROP]], [], None, uncertain),
        ([[jump], if_marked], [[mark]], None, certain),
        ([[jump], if_marked], [[mark, leave]], None, certain),
        ([[jump], if_marked], [[_LIMITED, mark]], None, uncertain),
        ([[_LIMITED, jump], if_marked], [[mark]], None, uncertain),
        ([[goto]], [[mark]], if_marked, certain),
        ([[goto]], [[mark, leave]], if_marked, certain),
        ([[goto]], [[mark, accept]], if_marked, certain),
        ([[jump]], [[mark, accept]], if_marked, certain),
        ([[leave], [_DROP]], [], None, none),
        ([[_LIMITED, leave], [_DROP]], [], None, uncertain),
        ([[mark, leave], [_DROP]], [], if_marked, certain),
        ([[mark, accept]], [], if_marked, certain),
        ([[{"jump": {"target": "missing"}}]], [], None, {("may drop", False)}),
        ([[{"jump": None}]], [], None, {("may drop", False)}),
    ):
        chain_key = {**_TABLE, "chain": "inner"}
        chain: list[dict[str, Any]] = [{"chain": {**_TABLE, "name": "inner"}}]
        chain += [{"rule": {**chain_key, "expr": rule}} for rule in inner]
        found = _ends(_ruleset(*rules, later=later, more=chain))
        assert found == ends, (rules, inner, later)
    for rules, ends in (([[leave]], certain), ([[goto]], certain), ([[accept]], none)):
        chain = [{"chain": {**_TABLE, "name": "inner"}}]
        assert _ends(_ruleset(*rules, policy="drop", more=chain)) == ends, rules


def test_ports_are_unknown_after_nat_or_a_rewrite() -> None:
    field = {"payload": {"protocol": "ip", "field": "daddr"}}
    for change, expected in (
        ({"snat": {"addr": "9.9.9.9"}}, set[tuple[str, bool]]()),
        ({"mangle": {"key": field, "value": "9.9.9.9"}}, {("may drop", False)}),
    ):
        for operator, port, ends in (
            ("==", 0, {("drops", False)}), ("==", 65_535, {("drops", False)}),
            (">=", 0, {("drops", True)}), ("<=", 65_535, {("drops", True)}),
        ):  # fmt: skip
            sport = {"payload": {"protocol": "tcp", "field": "sport"}}
            match = {"match": {"op": operator, "left": sport, "right": port}}
            assert _ends(_ruleset([change], later=[match, _DROP])) == expected | ends, (
                change,
                port,
            )
    class_of = {"payload": {"protocol": "ip", "field": "dscp"}}
    assert _ends(_ruleset([{"mangle": {"key": class_of, "value": 8}}])) == set()


def test_redirected_gateway_port_is_distinguished_from_dropped_traffic() -> None:
    for hook, name, severity in (("input", "redirects", "info"), ("forward", "drops", "blocked")):
        found = list(judge(_ruleset([_xt("REDIRECT")], hook=hook), _SCOPE))
        assert {(each.name, each.severity) for each in found} == {(name, severity)}


def test_walker_follows_a_verdict_map_of_any_form() -> None:
    def mapped(data: Any, **more: Any) -> dict[str, Any]:
        return {"vmap": {"key": _DPORT, "data": data, **more}}

    unknown, uncertain, certain = {("may drop", False)}, {("drops", False)}, {("drops", True)}
    for statement, ends in (
        (mapped({"set": [[22, {"accept": None}], ["*", _DROP]]}), certain),
        (mapped({"set": [[443, {"accept": None}], ["*", _DROP]]}), set()),
        (mapped({"set": [[{"range": [1, 99]}, _DROP], ["*", {"return": None}]]}), set()),
        (mapped({"set": [["https", {"accept": None}], ["*", _DROP]]}), uncertain),
        (mapped({"set": [[443, {"counter": None}], ["*", _DROP]]}), set()),
        (mapped({"set": [[443, None], ["*", _DROP]]}), set()),
        (mapped({"set": [["https", {"counter": None}], [22, _DROP], ["*", _DROP]]}), uncertain),
        (mapped("@unread"), unknown),
        (mapped({"set": [443]}), unknown),
        (mapped({"set": [[443, _DROP, 1]]}), unknown),
        ({"vmap": None}, unknown),
    ):
        assert _ends(_ruleset([statement])) == ends, statement
    # The rule goes on where the map may have no verdict.
    assert _ends(_ruleset([mapped("@unread"), _DROP])) == certain


def test_finding_names_the_undecided_rule() -> None:
    accept: list[dict[str, Any]] = [_LIMITED, {"accept": None}]
    (found,) = judge(_ruleset(accept, hook="input", policy="drop"), _SCOPE)
    assert (found.name, found.severity) == ("may-drop", "blocked")
    shown = '[{"limit":{"rate":1}},{"accept":null}]'
    assert found.meaning == (
        "table ip a table, chain base (nftables): its policy may stop (drops) traffic from the VM "
        "to the gateway's port (tcp 3128; IPv4); "
        f"it depends on `{shown}`, whose result can't be predicted"
    )
    # An uncertain jump is named, too.
    inner: list[dict[str, Any]] = [
        {"chain": {**_TABLE, "name": "inner"}},
        {"rule": {**_TABLE, "chain": "inner", "handle": 9, "expr": [_DROP]}},
    ]
    jump: list[dict[str, Any]] = [_LIMITED, {"jump": {"target": "inner"}}]
    (found,) = judge(_ruleset(jump, hook="input", more=inner), _SCOPE)
    assert found.meaning.startswith("table ip a table, chain inner (nftables): rule 9 `")
    assert '; it depends on `[{"limit":{"rate":1}},{"jump":{"target":"inner"}}]`' in found.meaning
    # The rule that stops the packet is not named twice.
    (found,) = judge(_ruleset([_LIMITED, _DROP], hook="input"), _SCOPE)
    assert "depends" not in found.meaning


def test_judge_counts_the_rules_that_it_does_not_report_one_by_one() -> None:
    for rules, more in (
        (32, []),
        (34, ["2 more rules drop, or may drop, traffic that the fence accepts"]),
    ):
        found = list(judge(_ruleset(*[[_LIMITED, _DROP]] * rules, hook="input"), _SCOPE))
        assert [each.meaning for each in found[32:]] == more
        assert {(each.name, each.severity) for each in found} == {("may-drop", "blocked")}
