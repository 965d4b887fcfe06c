"""Tests that the verdicts of `check` on rulesets agree with real packets in the kernel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st

from ocsf_nft import check
from ocsf_nft.check import hook_path, read_ruleset
from ocsf_nft.check.accepted_flows import FlowDirection
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import nft
from tests.kernel.vm_host import DEVICE, PORT, SUBNETS, VmHost, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.accepted_flows import AcceptedFlow, CheckScope

pytestmark = pytest.mark.kernel

_EXAMPLES: Final = int(os.environ.get("OCSF_NFT_EXAMPLES", "60"))
_SETS: Final = """
	set hosts { type ipv4_addr; flags interval; elements = { 172.16.0.0/30, 9.9.9.9 }; }
	set ends {
		type ipv4_addr . inet_service
		elements = { 93.184.215.14 . 443, 172.16.0.1 . 3128 }
	}
	set links { type ifname; elements = { "vmtap-1", "lo" }; }
	set seen { type ipv4_addr; size 2; flags dynamic; elements = { 9.9.9.9 }; }
	counter some { }
	map ways {
		type inet_service : verdict
		elements = { 53 : accept, 443 : drop, 3128 : jump one }
	}
"""
_MATCHES: Final = (
    'iifname "vmtap-1"', 'iifname "vmtap-*"', 'iifname != "vmtap-*"', 'iifname { "lo", "up0" }',
    'iifname != { "lo", "up0" }', "iifname @links", 'iif "up0"', 'iif != "lo"', 'oifname "up0"',
    'oifname != "up0"', 'oifname "vmtap-1"', 'oifname "u*"', 'oif "vmtap-1"',
    "ip saddr 172.16.0.0/30", "ip saddr != 172.16.0.0/16", "ip saddr 93.0.0.0-94.0.0.0",
    "ip daddr { 1.2.3.4, 93.184.0.0/16 }", "ip daddr != { 1.2.3.4, 93.184.0.0/16 }",
    "ip saddr @hosts", "ip saddr != @hosts", "ip daddr . tcp dport @ends", "ip daddr 172.16.0.1",
    "ip daddr . th dport != { 93.184.215.14 . 0-100, 172.16.0.0/24 . 0-65535 }",
    "ip6 saddr fd00:16::/64", "ip6 daddr 2000::/3", "ip6 daddr != 2000::/3", "ip6 nexthdr tcp",
    "ip frag-off & 0x3fff != 0", "ip hdrlength 5", "ip protocol udp", "ip protocol != tcp",
    "ip version 4", "ip ttl > 100",
    "meta nfproto ipv4", "meta nfproto != ipv4", "meta protocol ip6", "meta l4proto tcp",
    "meta l4proto { udp, icmp }", "meta l4proto != udp", "meta l4proto 6",
    "tcp dport 443", "tcp dport != 443", "udp dport { 53, 123 }", "udp dport != { 53, 123 }",
    "tcp dport 1024-65535", "tcp dport < 1024", "tcp dport >= 3128", "th sport 443",
    "tcp sport { 443, 3128 }", "udp sport < 1024", "icmp type echo-request", "sctp dport 443",
    "ct state new", "ct state established,related", "ct state { new, untracked }",
    "ct state invalid", "ct state != new", "ct state != { established, new }",
    "ct state ! new", "ct direction original", "ct direction != original", "ct status dnat",
    "meta mark 0x1", "meta mark & 0x3 == 0x1", "meta mark != 0x0", "meta mark 0x0-0x2",
    "fib daddr type local", "fib daddr type != local", "fib daddr type { unicast, broadcast }",
    "fib saddr . iif oif missing", "fib saddr . iif oif exists", "fib saddr type local",
    "tcp flags & (syn | ack) == syn", "tcp flags syn", "tcp flags ! syn", "tcp flags { syn, ack }",
    "meta pkttype host", "meta pkttype != { broadcast, multicast }", "exthdr rt exists",
    "exthdr frag missing", "meta length < 500", "limit rate 100/second", "limit rate over 1/hour",
    'meta iifname . ip saddr { "vmtap-1" . 172.16.0.2, "up*" . 93.184.215.14 }',
    "numgen inc mod 2 0", "ct mark 0x0", "meta skuid 0", "ip saddr @seen", "ip saddr != @seen",
    "ct original ip saddr 172.16.0.2", "ct original proto-dst 443",
)  # fmt: skip
_STATEMENTS: Final = (
    "accept", "accept", "drop", "drop", "return", "jump one", "jump two", "goto one", "goto two",
    "continue", "counter", "counter drop", "meta mark set 0x1", "meta mark set meta mark | 0x2",
    "meta mark set ct mark", "ct mark set 0x5", 'log prefix "x" accept', "limit rate 1/hour accept",
    "meta mark set 0x1 accept", "tcp dport vmap { 443 : accept, 22-100 : drop, 3128 : jump two }",
    "ct state vmap { new : jump one, established : accept, invalid : drop }",
    'iifname vmap { "vmtap-1" : goto two, "up*" : continue, "lo" : drop }',
    "meta l4proto vmap { tcp : return, udp : jump one }", "th dport vmap @ways",
    "meta mark set tcp dport map { 22 : 0x1, 443 : 0x2 }", "ip dscp set cs1 accept",
    "meta mark set th dport map { 0-100 : 0x1 } accept", "tcp option maxseg size set 1200 accept",
    'counter name tcp dport map { 443 : "some" } drop', "add @seen { ip saddr } accept",
    "update @seen { ip daddr }", "meta mark set ct mark accept", "ip ttl set 60",
    "ip saddr . ip daddr vmap { 172.16.0.0/24 . 93.0.0.0/8 : accept, 0.0.0.0/0 . 9.9.9.9 : drop }",
)  # fmt: skip
_TO_THE_GATEWAY: Final = (FlowDirection.GATEWAY, FlowDirection.GATEWAY_ANSWER)
_HOOKS: Final = ("prerouting", "forward", "postrouting", "input", "output")


@st.composite
def _rules(draw: st.DrawFn, ends: tuple[str, ...]) -> str:
    lines = draw(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from(_MATCHES), max_size=2), st.sampled_from(ends)
            ).filter(lambda rule: not _is_shortened(*rule)),
            min_size=1,
            max_size=6,
        )
    )
    return "\n".join(f"\t\t{' '.join([*matches, end])}" for matches, end in lines)


def _is_shortened(matches: list[str], end: str) -> bool:
    """Return True if nft 1.1 lists only the reject, which then seems to match IPv4 packets."""
    return "meta protocol ip6" in matches and end == "reject with icmp port-unreachable"


@st.composite
def _base(draw: st.DrawFn, number: int) -> str:
    hook = draw(st.sampled_from(_HOOKS))
    # The kernel accepts reject rules only in the other hooks.
    more = (
        ()
        if hook in {"prerouting", "postrouting"}
        else (
            "reject",
            "meta l4proto tcp reject",
            "reject with icmp port-unreachable",
            "reject with icmpv6 admin-prohibited",
            "reject with tcp reset",
        )
    )
    early = ("notrack",) if hook in {"prerouting", "output"} else ()
    priority = draw(st.sampled_from((-300, -150, -1, 0, 0, 10, 150)))
    policy = draw(st.sampled_from(("accept", "accept", "drop")))
    rules = draw(_rules((*_STATEMENTS, *more, *early)))
    start = f"type filter hook {hook} priority {priority}; policy {policy};"
    return f"\tchain base{number} {{\n\t\t{start}\n{rules}\n\t}}\n"


@st.composite
def _rulesets(draw: st.DrawFn) -> str:
    # Chain one has no jumps, chain two jumps only to one: the kernel refuses loops.
    nowhere = tuple(
        end for end in _STATEMENTS if not any(word in end for word in ("jump", "goto", "@"))
    )
    to_one = tuple(end for end in _STATEMENTS if "two" not in end)
    parts = [
        f"\tchain one {{\n{draw(_rules(nowhere))}\n\t}}\n",
        f"\tchain two {{\n{draw(_rules(to_one))}\n\t}}\n",
    ]
    parts += [draw(_base(number)) for number in range(draw(st.integers(2, 5)))]
    return f"table inet trial {{\n{_SETS}\n{''.join(parts)}}}\n"


@pytest.fixture(scope="module")
def host() -> Iterator[VmHost]:
    with vm_host() as vm:
        yield vm


@pytest.fixture(scope="module")
def scope(host: VmHost) -> CheckScope:
    return check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS, port=PORT)


def _verdicts(scope: CheckScope) -> dict[Any, str]:
    ruleset = read_ruleset.read(scope.namespace)
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    found = {}
    for flow in scope.flows():
        flow_stops = hook_path.flow_stops(flow, hooks, walker)
        is_certain = any(flow_stop.is_certain for flow_stop in flow_stops)
        verdict = "drops" if is_certain else "may drop" if flow_stops else "passes"
        found[flow.direction, flow.label, flow.packet.version] = verdict
    return found


def _agrees(verdict: str, arrives: bool) -> bool:
    return verdict == "may drop" or (verdict == "passes") == arrives


@settings(
    max_examples=_EXAMPLES,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
@given(text=_rulesets(), data=st.data())
def test_verdicts_agree_with_the_kernel_on_random_rulesets(
    host: VmHost, scope: CheckScope, text: str, data: st.DataObject
) -> None:
    try:
        nft.load(host.namespace, f"flush ruleset\n{text}")
    except OcsfNftError:  # the kernel accepts some statements only in some hooks
        reject()
    note(text)
    verdicts = _verdicts(scope)
    flows = [
        flow
        for flow in scope.flows()
        if flow.direction in {FlowDirection.OUT, FlowDirection.GATEWAY} and not flow.is_continuation
    ]
    for flow in data.draw(st.lists(st.sampled_from(flows), min_size=2, max_size=4, unique=True)):
        version, label = flow.packet.version, flow.label
        if flow.direction is FlowDirection.GATEWAY:
            out = _both(*(verdicts[each, label, version] for each in _TO_THE_GATEWAY))
            back = "may drop"  # only the answer is checked
        else:
            out, back = (
                verdicts[each, label, version] for each in (FlowDirection.OUT, FlowDirection.REPLY)
            )
        # An untracked flow has no packets in the state of replies.
        if "notrack" in text:
            back = "may drop"
        arrives, reply = host.gets_through(
            flow, is_expected=out == "passes", is_reply_expected=back == "passes"
        )
        assert _agrees(out, arrives), (flow.direction, label, version, out, arrives)
        assert reply is None or _agrees(back, reply), (label, version, back, reply)


def _both(*verdicts: str) -> str:
    """Return the verdict for a flow that needs both verdicts."""
    return next((each for each in ("drops", "may drop") if each in verdicts), "passes")


def _chain_at(hook: str, priority: int, *rules: str, policy: str = "accept") -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    start = f"type filter hook {hook} priority {priority}; policy {policy};"
    return f"\tchain at_{hook}{priority + 500} {{\n\t\t{start}\n{lines}\t}}\n"


def _chain(name: str, *rules: str) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n{lines}\t}}\n"


#: Rules, and the verdict for the VM's TCP to port 443 of the internet.
_CASES: Final = {
    "a packet is not tracked before connection tracking": (
        _chain_at("prerouting", -300, "ct state invalid drop"), "drops"),
    "a tracked packet is new": (
        _chain_at("prerouting", -150, "ct state invalid,untracked drop", "ct state new mark set 1")
        + _chain_at("forward", 0, "meta mark 1 accept", policy="drop"), "passes"),
    "notrack makes a packet untracked": (
        _chain_at("prerouting", -300, "notrack")
        + _chain_at("forward", 0, "ct state untracked drop"), "drops"),
    "notrack has no effect on a tracked packet": (
        _chain_at("prerouting", -150, "notrack")
        + _chain_at("forward", 0, "ct state untracked drop"), "passes"),
    "an accept ends only its own chain": (
        _chain_at("forward", -10, "accept") + _chain_at("forward", 10, "drop"), "drops"),
    "a drop is final": (
        _chain_at("forward", -10, "drop") + _chain_at("forward", 10, "accept"), "drops"),
    "a return leads to the policy": (
        _chain_at("forward", 0, "return", "accept", policy="drop"), "drops"),
    "a jump comes back": (
        _chain("one", "return") + _chain_at("forward", 0, "jump one", "drop"), "drops"),
    "a goto doesn't come back": (
        _chain("one", "return") + _chain_at("forward", 0, "goto one", "drop"), "passes"),
    "a goto in a jump comes back to the jump": (
        _chain("one", "counter") + _chain("two", "goto one", "accept")
        + _chain_at("forward", 0, "jump two", "drop"), "drops"),
    "an unknown output interface has an empty name": (
        _chain_at("prerouting", 0, 'oifname != "up0" drop'), "drops"),
    "an unknown output interface matches no pattern": (
        _chain_at("prerouting", 0, 'oifname "u*" drop'), "passes"),
    "the other family's field matches neither way": (
        _chain_at("forward", 0, "ip6 saddr != fd00::/8 drop"), "passes"),
    "the other protocol's field matches neither way": (
        _chain_at("forward", 0, "udp dport != 53 drop"), "passes"),
    "an asterisk matches any end of a name": (
        _chain_at("forward", 0, 'iifname "vmtap-*" oifname "up*" drop'), "drops"),
    "a verdict map selects the verdict": (
        _chain("one", "drop")
        + _chain_at("forward", 0, "tcp dport vmap { 80-442 : drop, 443 : accept }", "drop"),
        "passes"),
    "a verdict map without an element is skipped": (
        _chain_at("forward", 0, "tcp dport vmap { 80 : accept }", "drop"), "drops"),
    "a mark stays set at later hooks": (
        _chain_at("prerouting", 0, "meta mark set 0x6")
        + _chain_at("postrouting", 0, "meta mark & 0x3 == 0x2 drop"), "drops"),
    "an unpredictable match gives may drop": (
        _chain_at("forward", 0, "numgen inc mod 2 0 accept", policy="drop"), "may drop"),
    "an unpredictable match gives drops if both outcomes drop": (
        _chain_at("forward", 0, "numgen inc mod 2 0 drop", policy="drop"), "drops"),
    "a map without an element ends the rule": (
        _chain_at("forward", 0, "meta mark set tcp dport map { 22 : 1 } accept", policy="drop"),
        "drops"),
    "a map with an element doesn't end the rule": (
        _chain_at("forward", 0, "meta mark set tcp dport map { 443 : 1 } accept", policy="drop"),
        "passes"),
    "a default applies to missing keys": (
        _chain_at("forward", 0, "tcp dport vmap { 22 : accept, * : drop }"), "drops"),
    "a default doesn't apply to existing keys": (
        _chain_at("forward", 0, "tcp dport vmap { 443 : accept, * : drop }"), "passes"),
    "a default also gives a value": (
        _chain_at("forward", 0, "meta mark set tcp dport map { 22 : 1, * : 2 } accept",
                  policy="drop"), "passes"),
    "a default doesn't apply to the other family": (
        _chain_at("forward", 0, "ip6 saddr vmap { * : drop }"), "passes"),
    "a default gives no value to the other family": (
        _chain_at("forward", 0, "meta mark set ip6 saddr map { * : 2 } accept", policy="drop"),
        "drops"),
    "at the priority of connection tracking the order is unknown": (
        _chain_at("prerouting", -200, "ct state invalid drop"), "may drop"),
    "an object map without an element ends the rule": (
        "\tcounter some { }\n"
        + _chain_at("forward", 0, 'counter name tcp dport map { 22 : "some" } drop'), "passes"),
    "a reject for the other family has no effect": (
        _chain_at("forward", 0, "reject with icmpv6 port-unreachable"), "passes"),
    "the other family's field can't be set": (
        _chain_at("forward", 0, "ip6 dscp set cs1 accept", policy="drop"), "drops"),
    "an untracked packet has no ct mark": (
        _chain_at("prerouting", -300, "notrack")
        + _chain_at("forward", 0, "meta mark set ct mark accept", policy="drop"), "drops"),
    "an untracked packet has no ct direction": (
        _chain_at("prerouting", -300, "notrack")
        + _chain_at("forward", 0, "ct direction original accept", policy="drop"), "drops"),
    "elements that rules add to a set are not listed": (
        "\tset seen { type ipv4_addr; size 9; flags dynamic; }\n"
        + _chain_at("prerouting", 0, "add @seen { ip saddr }")
        + _chain_at("forward", 0, "ip saddr @seen accept", policy="drop"), "may drop"),
    "a full set ends the rule": (
        "\tset seen { type ipv4_addr; size 1; flags dynamic; elements = { 9.9.9.9 }; }\n"
        + _chain_at("forward", 0, "add @seen { ip saddr } accept", policy="drop"), "may drop"),
    "IPv4 doesn't match a missing IPv6 header": (
        _chain_at("forward", 0, "exthdr frag missing accept", policy="drop"), "drops"),
    "a changed TTL doesn't change the address": (
        _chain_at("prerouting", 0, "ip ttl set 60")
        + _chain_at("forward", 0, "ip saddr 172.16.0.0/30 accept", policy="drop"), "passes"),
    "changed bytes may change the port": (
        _chain_at("prerouting", -310, "ip protocol tcp @th,16,16 set 444"), "may drop"),
    "of two chains with one priority the newer one comes first": (
        _chain_at("prerouting", 0, "meta mark set 1")
        + _chain_at("prerouting", 0, "meta mark 1 drop").replace("at_", "next_"), "may drop"),
    "two chains with one priority may both drop": (
        _chain_at("forward", 0, policy="drop")
        + _chain_at("forward", 0, policy="drop").replace("at_", "next_"), "drops"),
    "the input interface is known at postrouting": (
        _chain_at("postrouting", 0, 'iifname "vmtap-1" drop'), "drops"),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
def test_verdict_agrees_with_the_kernel_in_each_case(
    host: VmHost, scope: CheckScope, case: str
) -> None:
    text, verdict = _CASES[case]
    nft.load(host.namespace, f"flush ruleset\ntable inet trial {{\n{text}}}\n")
    flow = _tcp_443(scope)
    assert _verdicts(scope)[FlowDirection.OUT, "tcp 443", 4] == verdict
    arrives, _ = host.gets_through(flow, is_expected=verdict == "passes", is_reply_expected=False)
    assert _agrees(verdict, arrives)


#: Chains of one interface, and the verdict for the VM's TCP to port 443 of the internet.
_DEVICE_CASES: Final = {
    "the input interface is unknown at egress": (
        'egress device "up0"', 'iifname "vmtap-1" drop', "passes"),
    "a negated input interface matches at egress": (
        'egress device "up0"', 'iifname != "vmtap-1" tcp dport 443 drop', "drops"),
    "a packet is seen at ingress": ('ingress device "vmtap-1"', "tcp dport 443 drop", "drops"),
    "a pattern may be a literal name": ('ingress devices = { "vmtap-*" }', "drop", "may drop"),
}  # fmt: skip


@pytest.mark.parametrize("case", _DEVICE_CASES)
def test_verdict_agrees_with_the_kernel_at_the_hooks_of_a_device(
    host: VmHost, scope: CheckScope, case: str
) -> None:
    hook, rule, verdict = _DEVICE_CASES[case]
    chain = _chain("one", f"type filter hook {hook} priority 0; policy accept;", rule)
    nft.load(host.namespace, f"flush ruleset\ntable netdev trial {{\n{chain}}}\n")
    flow = _tcp_443(scope)
    assert _verdicts(scope)[FlowDirection.OUT, "tcp 443", 4] == verdict
    arrives, _ = host.gets_through(flow, is_expected=verdict == "passes", is_reply_expected=False)
    assert _agrees(verdict, arrives)


def test_later_packets_may_be_dropped_where_the_first_one_passes(
    host: VmHost, scope: CheckScope
) -> None:
    rules = ("ct state new accept", 'oifname "vmtap-1" ct state established accept')
    text = _chain_at("forward", 0, *rules, policy="drop")
    nft.load(host.namespace, f"flush ruleset\ntable inet trial {{\n{text}}}\n")
    verdicts = _verdicts(scope)
    assert verdicts[FlowDirection.OUT, "tcp 443", 4] == "passes"
    assert verdicts[FlowDirection.REPLY, "tcp 443", 4] == "passes"
    assert verdicts[FlowDirection.OUT, "tcp 443, once open", 4] == "drops"
    assert host.goes_on(_tcp_443(scope)) is False
    nft.load(host.namespace, "flush ruleset\n")
    assert _verdicts(scope)[FlowDirection.OUT, "tcp 443, once open", 4] == "passes"
    assert host.goes_on(_tcp_443(scope), is_expected=True) is True


def _tcp_443(scope: CheckScope) -> AcceptedFlow:
    return next(
        each
        for each in scope.flows()
        if (each.direction, each.label, each.packet.version) == (FlowDirection.OUT, "tcp 443", 4)
    )
