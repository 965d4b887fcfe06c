"""Tests of translating iptables-save's lines; tests/kernel compare the result with the kernel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.check import xtables
from ocsf_nft.check.ruleset import ChainKey
from ocsf_nft.errors import UsageError

_KEY = ChainKey("legacy", "ip", "filter", "FORWARD")
_UNKNOWN = ("xt", {"type": "match", "name": None})


def _statements(line: str) -> list[tuple[str, Any]]:
    saved = f"*filter\n:FORWARD ACCEPT [0:0]\n:mine - [0:0]\n{line}\nCOMMIT\n"
    chain = xtables.chains(saved, "ip", "legacy")[_KEY]
    (rule,) = chain.rules
    assert rule.text == line
    return list(rule.statements)


def _match(left: Any, right: Any, operator: str = "==") -> tuple[str, Any]:
    return "match", {"op": operator, "left": left, "right": right}


def _meta(key: str) -> Any:
    return {"meta": {"key": key}}


_ALL_FLAGS = "fin syn rst psh ack urg"


def _flags(mask: str, names: str, operator: str = "==") -> list[tuple[str, Any]]:
    """Return the statements of a TCP rule that drops packets with these flags under a mask."""
    left = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": mask.split()}]}
    flags = _match(left, {"|": names.split()}, operator)
    return [_match(_meta("l4proto"), "tcp"), flags, ("drop", None)]


@pytest.mark.parametrize(
    ("line", "statements"),
    [
        ("-j ACCEPT", [("accept", None)]),
        ("-i vmtap-+ -j DROP", [_match(_meta("iifname"), "vmtap-*"), ("drop", None)]),
        ("! -o a* -j DROP", [_match(_meta("oifname"), "a\\*", "!="), ("drop", None)]),
        (
            "-p tcp -m tcp --dport 80:90 -g mine",
            [
                _match(_meta("l4proto"), "tcp"),
                _match(
                    {"payload": {"protocol": "tcp", "field": "dport"}},
                    {"set": [{"range": [80, 90]}]},
                ),
                ("goto", {"target": "mine"}),
            ],
        ),
        (
            "-m conntrack ! --ctstate NEW,UNTRACKED -j RETURN",
            [_match({"ct": {"key": "state"}}, ["new", "untracked"], "!"), ("return", None)],
        ),
        ("-m conntrack --ctstate DNAT -j ACCEPT", [_UNKNOWN, ("accept", None)]),
        (
            "-m mark --mark 0x1/0xff -j mine",
            [_match({"&": [_meta("mark"), 255]}, 1), ("jump", {"target": "mine"})],
        ),
        (
            "-j MARK --set-xmark 0x4/0x4",
            [
                (
                    "mangle",
                    {
                        "key": _meta("mark"),
                        "value": {"^": [{"&": [_meta("mark"), 0xFFFFFFFB]}, 4]},
                    },
                )
            ],
        ),
        (
            "-j MARK --set-xmark 0x4",
            [
                (
                    "mangle",
                    {"key": _meta("mark"), "value": {"^": [{"&": [_meta("mark"), 0]}, 4]}},
                )
            ],
        ),
        ("-j MARK --set-xmark some", [("xt", {"type": "target", "name": "MARK"})]),
        ("-j MARK", [("xt", {"type": "target", "name": "MARK"})]),
        ("-j MARK --and-mark 0x4", [("xt", {"type": "target", "name": "MARK"})]),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", _flags("fin syn rst ack", "syn")),
        ("-p tcp -m tcp ! --tcp-flags ALL NONE -j DROP", _flags(_ALL_FLAGS, "", "!=")),
        ("-p tcp -m tcp --tcp-flags SYN,ACK ALL -j DROP", _flags("syn ack", _ALL_FLAGS)),
        (
            "-p tcp -m tcp --dport ftp -j ACCEPT",
            [
                _match(_meta("l4proto"), "tcp"),
                _match({"payload": {"protocol": "tcp", "field": "dport"}}, {"set": ["ftp"]}),
                ("accept", None),
            ],
        ),
        ('-m comment --comment "a -j DROP \\"b" -j ACCEPT', [("accept", None)]),
        # The values of an unknown module's options may be equal to options.
        ("-m string --string -j --algo bm -j ACCEPT", [_UNKNOWN, ("accept", None)]),
        ("-m string --string -s --algo bm -j DROP", [_UNKNOWN, ("drop", None)]),
        (
            "-p udp -m string --string -j --algo bm -j DROP",
            [_match(_meta("l4proto"), "udp"), _UNKNOWN, ("drop", None)],
        ),
        ("-p udp -m recent --rcheck", [_match(_meta("l4proto"), "udp"), _UNKNOWN]),
        ("-m something", [_UNKNOWN]),
        ("-m conntrack --ctorigdst 10.0.0.1 -j DROP", [_UNKNOWN, ("drop", None)]),
        ("-s 10.0.0.0/255.0.255.0 -j DROP", [_UNKNOWN, ("drop", None)]),
        ("-m icmp --icmp-type 8 -j DROP", [xtables._NEVER, ("drop", None)]),
        (
            "! -p tcp -m multiport --dports 80 -j DROP",
            [
                _match(_meta("l4proto"), "tcp", "!="),
                _match({"payload": {"protocol": "th", "field": "dport"}}, {"set": [80]}),
                ("drop", None),
            ],
        ),
        ("-j NFQUEUE --queue-num 1", [("queue", None)]),
        ("-j SOMETHING --new", [("xt", {"type": "target", "name": "SOMETHING"})]),
        ("-j CT --notrack", [("notrack", None)]),
        ("-j CT --helper ftp", [("ct helper", None)]),
    ],
)
def test_line_becomes_statements(line: str, statements: list[tuple[str, Any]]) -> None:
    assert _statements(f"-A FORWARD {line}") == statements


def test_rule_has_the_comment_of_its_line() -> None:
    saved = '*filter\n:a - [0:0]\n-A a -m comment --comment "it\\\'s" -j DROP\n'
    (rule,) = xtables.chains(saved, "ip", "nft")[ChainKey("nft", "ip", "filter", "a")].rules
    assert rule.comment == "it's"


@pytest.mark.parametrize(
    ("table", "chain", "priority", "kind"),
    [
        ("raw", "PREROUTING", -300, "filter"),
        ("mangle", "POSTROUTING", -150, "filter"),
        ("nat", "PREROUTING", -100, "nat"),
        ("nat", "POSTROUTING", 100, "nat"),
        ("filter", "FORWARD", 0, "filter"),
        ("security", "INPUT", 50, "filter"),
    ],
)
def test_built_in_chain_has_the_hook_and_priority_of_the_kernel(
    table: str, chain: str, priority: int, kind: str
) -> None:
    saved = f"*{table}\n:{chain} DROP [1:2]\nCOMMIT\n"
    base = xtables.chains(saved, "ip", "legacy")[ChainKey("legacy", "ip", table, chain)].base
    assert base is not None
    assert (base.hook, base.priority, base.kind, base.policy) == (
        chain.lower(), priority, kind, "drop",
    )  # fmt: skip


def test_chain_without_a_policy_or_a_hook_name_is_no_base_chain() -> None:
    saved = "*filter\n:FORWARD - [0:0]\n:mine ACCEPT [0:0]\n:INPUT DROP [0:0]\n"
    chains = xtables.chains(saved, "ip", "legacy").values()
    assert [chain.key.name for chain in chains if chain.base is not None] == ["INPUT"]


@pytest.mark.parametrize(
    "text", ["*filter\n:FORWARD ACCEPT - [0:0]\n", ":FORWARD\n", "iptables: bad\n"]
)
def test_read_raises_an_error_for_a_line_of_another_form(text: str) -> None:
    with pytest.raises(UsageError, match="no line of iptables-save"):
        xtables.chains(text, "ip", "nft")


@given(
    st.text(alphabet=st.characters(exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))
)
def test_read_accepts_any_rule_line(text: str) -> None:
    saved = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {text}\n"
    xtables.chains(saved, "ip6", "legacy")
