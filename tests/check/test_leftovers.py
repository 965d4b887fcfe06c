"""Tests of the leftovers of an older set-up, as nft lists them without iptables."""

from __future__ import annotations

from typing import Any, Final

from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.devices import NetDevice
from ocsf_nft.check.leftovers import find_leftovers, findings
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

_SCOPE: Final = CheckScope(
    namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
)
_ACCEPT: Final[dict[str, Any]] = {"accept": None}


def _device(name: str, kind: str = "tun") -> NetDevice:
    return NetDevice(
        ifindex=1, name=name, kind=kind, master=None, lower=None, is_lower_elsewhere=False,
        has_xdp=False, has_filters=False,
    )  # fmt: skip


def _match(key: str, field: str, right: Any, operator: str = "==") -> dict[str, Any]:
    left = {"meta": {"key": field}} if key == "meta" else {key: {"protocol": "ip", "field": field}}
    return {"match": {"op": operator, "left": left, "right": right}}


def _found(
    *rules: list[dict[str, Any]], chain: str = "", scope: CheckScope = _SCOPE
) -> list[tuple[str, str]]:
    """Return the texts and reasons of the leftovers of a host with the device vmtap-1."""
    table_key = {"family": "ip", "table": "filter"}
    objects: list[Any] = [
        {"chain": {**table_key, "name": "FORWARD", "hook": "forward", "prio": 0}},
        *({"rule": {**table_key, "chain": "FORWARD", "handle": handle, "expr": rule}}
          for handle, rule in enumerate(rules, 1)),
        *([{"chain": {**table_key, "name": chain}}] if chain else []),
    ]  # fmt: skip
    found = find_leftovers(from_json({"nftables": objects}), {"vmtap-1": _device("vmtap-1")}, scope)
    return [(each.text, each.reason) for each in found]


def test_leftover_without_iptables_text_is_shown_by_its_statements() -> None:
    removed, existing = _match("meta", "iifname", "vmtap-9"), _match("meta", "oif", "vmtap-1")
    assert _found([removed, _ACCEPT], [existing, {"drop": None}], [_ACCEPT]) == [
        (
            "rule handle 1 in ip filter FORWARD: match accept",
            "it is for vmtap-9, which does not exist",
        ),
        (
            "rule handle 2 in ip filter FORWARD: match drop",
            "it is for vmtap-1, which a fence handles",
        ),
    ]
    table_key = {"family": "ip", "table": "filter", "chain": "FORWARD"}
    base = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "prio": 0}
    listed = [{"chain": base}, {"rule": {**table_key, "handle": 7, "expr": [removed, _ACCEPT]}}]
    (finding,) = findings(find_leftovers(from_json({"nftables": listed}), {}, _SCOPE))
    location = finding.location
    assert location is not None
    assert (location.handle, location.rule) == (7, "match accept")


def test_leftover_chain_is_named_after_its_device() -> None:
    for name, reason in (
        ("vmtap-1", "it is named after vmtap-1"),
        ("in-vmtap-1-accept", "it is named after vmtap-1"),
        ("vmtap-9-in", "it is named after vmtap-9-in, which does not exist"),
        ("vmtap-12", None),  # begins with the name of an existing device
        ("myvmtap-1", None),
        ("in", None),
    ):
        text = f"chain ip filter {name}, with the 0 rules in it"
        expected = [] if reason is None else [(text, reason)]
        assert _found(chain=name) == expected, name


def test_leftover_nat_translates_a_subnet_of_the_vm() -> None:
    prefix = {"prefix": {"addr": "172.16.0.0", "len": 30}}
    for source, statement, is_leftover in (
        (prefix, {"masquerade": None}, True),
        ("172.16.0.0/30", {"snat": {"addr": "192.0.2.1"}}, True),
        (prefix, {"xt": {"type": "target", "name": "MASQUERADE"}}, True),
        (prefix, {"xt": {"type": "target", "name": "LOG"}}, False),
        (prefix, {"counter": {"name": "MASQUERADE"}}, False),
        (prefix, _ACCEPT, False),
        ({"prefix": {"addr": "172.16.0.0", "len": 16}}, {"masquerade": None}, False),
        ("@machines", {"masquerade": None}, False),
        ({"set": ["172.16.0.2"]}, {"masquerade": None}, False),
    ):
        found = _found([_match("payload", "saddr", source), statement])
        reasons = ["it translates 172.16.0.0/30, which a fence handles"] * is_leftover
        assert [reason for _, reason in found] == reasons, (source, statement)
    # The matches after an unreadable one are checked, too.
    both = [_match("payload", "saddr", "@machines"), _match("payload", "saddr", prefix)]
    assert len(_found([*both, {"masquerade": None}])) == 1


def test_leftover_rule_is_recognised_by_its_table_chain_and_comment() -> None:
    removed = _match("meta", "iifname", "vmtap-9")
    base = {"hook": "forward", "prio": 0}
    for family, table, name, more, is_leftover in (
        ("ip", "filter", "FORWARD", base, True),
        ("ip6", "nat", "POSTROUTING", base, True),
        ("inet", "filter", "FORWARD", base, False),
        ("ip", "site", "FORWARD", base, False),
        ("ip", "filter", "mine", {}, True),
        ("ip", "filter", "DOCKER-USER", {}, True),
        ("ip", "filter", "DOCKER-FORWARD", {}, False),
        ("ip", "filter", "ufw-user-forward", {}, False),
    ):
        table_key = {"family": family, "table": table}
        listed = [
            {"chain": {"family": "ip", "table": "filter", "name": "ufw-first"}},
            {"chain": {**table_key, "name": name, **more}},
            {"rule": {**table_key, "chain": name, "handle": 7, "expr": [removed, _ACCEPT]}},
        ]
        found = find_leftovers(from_json({"nftables": listed}), {}, _SCOPE)
        assert len(found) == is_leftover, (family, table, name)
    existing = _match("meta", "iifname", "vmtap-1")
    rule = {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": [existing, _ACCEPT]}
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", **base}
    for comment, kind, device, is_leftover in (
        (None, "tun", "vmtap-1", True),
        ("site", "tun", "vmtap-1", True),
        ("ocsf-nft", "tun", "vmtap-1", False),
        (None, "bridge", "vmtap-1", False),
        (None, "tun", "vmtap-*", False),
        (None, "tun", None, False),
    ):
        listed = [{"chain": chain}, {"rule": {**rule, "comment": comment}}]
        present = {"vmtap-1": _device("vmtap-1", kind)}
        scope = CheckScope(namespace=Namespace(), device=device, port=3128)
        found = find_leftovers(from_json({"nftables": listed}), present, scope)
        assert len(found) == is_leftover, (comment, kind, device)


def test_rule_that_names_a_device_in_another_form_is_no_leftover() -> None:
    for match in (
        _match("meta", "iifname", "vmtap-9", "!="),
        _match("meta", "iifname", "vmtap-9*"),
        _match("meta", "iifname", {"set": ["vmtap-9"]}),
        _match("ct", "helper", "vmtap-9"),
    ):
        assert _found([match, _ACCEPT]) == [], match


def test_leftover_rule_leads_to_a_leftover_chain() -> None:
    reason = "it leads to chain vmtap-1: it is named after vmtap-1"
    rules: list[tuple[list[dict[str, Any]], list[str]]] = [
        ([{"counter": None}, {"jump": {"target": "vmtap-1"}}], [reason]),
        ([{"goto": {"target": "vmtap-1"}}], [reason]),
        ([{"jump": {"target": "vmtap-2"}}], []),
        ([{"xt": {"target": "vmtap-1"}}], []),
    ]
    for rule, reasons in rules:
        found = [each for _, each in _found(rule, chain="vmtap-1")]
        assert found == [*reasons, "it is named after vmtap-1"], rule


def test_leftover_nat_excludes_at_most_the_device_of_its_subnet() -> None:
    source = _match("payload", "saddr", "172.16.0.0/30")
    for excluded, is_leftover in (("vmtap-1", True), ("vmtap-9", True), ("eth0", False)):
        listed: list[Any] = [
            {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING"}},
            {"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING", "expr": [
                source, _match("meta", "oifname", excluded, "!="), {"masquerade": None}]}},
        ]  # fmt: skip
        present = {name: _device(name) for name in ("vmtap-1", "eth0")}
        found = find_leftovers(from_json({"nftables": listed}), present, _SCOPE)
        assert len(found) == is_leftover, excluded
    by_target = _match("payload", "daddr", "172.16.0.0/30")
    assert _found([by_target, {"masquerade": None}]) == []
