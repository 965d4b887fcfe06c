"""`check` on prepared hosts: it names what drops, and it is the truth that packets tell.

The rules in tests/check/hosts are what the real programs load.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft import check
from ocsf_nft.check import Finding, hook_path, read_ruleset
from ocsf_nft.check.accepted_flows import FlowDirection
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.check.diagnosis import judge
from ocsf_nft.fence import nft, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT
from ocsf_nft.netns import Namespace
from tests.kernel import command
from tests.kernel.vm_host import DEVICE, PORT, SUBNETS, VmHost, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.check.diagnosis import CheckScope
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_HOSTS = Path(__file__).parents[1] / "check" / "hosts"
_RESTORE: Final = {
    "nft": {"rules4": "iptables-nft-restore", "rules6": "ip6tables-nft-restore"},
    "legacy": {"rules4": "iptables-legacy-restore", "rules6": "ip6tables-legacy-restore"},
}
_POLICY_DROP = """table inet site {
	chain through {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "wg0" accept
	}
	chain local {
		type filter hook input priority filter; policy accept;
		ct state established,related accept
		iifname != "lo" tcp dport != 22 jump others
	}
	chain others {
		tcp dport 1-65535 drop
	}
}
"""


@pytest.fixture
def host() -> Iterator[VmHost]:
    with vm_host() as made:
        yield made


def _load(host: VmHost, name: str, backend: str = "nft") -> None:
    """Load what is kept of a host: nft's rules, or iptables' of either kind."""
    found = sorted(_HOSTS.glob(f"{name}.*"))
    assert found, name
    for path in found:
        if path.suffix == ".nft":
            nft.load(host.namespace, path.read_text())
        else:
            program = _RESTORE[backend][path.suffix[1:]]
            text = path.read_text()
            _run(host, [program], text)


def _run(host: VmHost, words: Sequence[str], text: str | None = None) -> str:
    done = host.namespace.call(
        lambda: subprocess.run(words, input=text, text=True, check=True, capture_output=True)
    )
    return done.stdout


def _check(host: VmHost, *more: str) -> command.Outcome:
    options = [word for subnet in SUBNETS for word in ("--subnet", str(subnet))]
    place = ("--netns", str(host.namespace.path), "--device", DEVICE, *options)
    return command.run("check", "--json", *place, "--gateway-port", str(PORT), *more)


def _scope(host: VmHost) -> CheckScope:
    return check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS, port=PORT)


def _blocked(outcome: command.Outcome) -> list[dict[str, Any]]:
    return [found for found in outcome.events if found["severity"] == "blocked"]


def _places(outcome: command.Outcome) -> set[tuple[str, str, str, str]]:
    return {
        (found["name"], place["family"], place["table"], place["chain"])
        for found in _blocked(outcome)
        if (place := found["place"])
    }


def _commands(outcome: command.Outcome) -> list[str]:
    return list(dict.fromkeys(each for found in _blocked(outcome) for each in found["commands"]))


def _assert_true(host: VmHost) -> None:
    """What is told of each flow is what the kernel does with it, and every one is decided."""
    scope = _scope(host)
    rules = read_ruleset.read(scope.namespace)
    hooks, walker = hook_path.by_hook(rules), Walker(rules)
    passes = {}
    for flow in scope.flows():
        flow_stops = hook_path.flow_stops(flow, hooks, walker)
        assert not flow_stops or flow_stops[-1].is_certain, (flow.direction, flow.label)
        passes[flow.direction, flow.label, flow.packet.version] = not flow_stops
    for flow in scope.flows():
        at = (flow.label, flow.packet.version)
        if flow.is_continuation:
            opening = (flow.direction, flow.label.partition(",")[0], flow.packet.version)
            assert passes[flow.direction, *at] or not passes[opening], at
        elif flow.direction is FlowDirection.OUT:
            out, back = passes[FlowDirection.OUT, *at], passes[FlowDirection.REPLY, *at]
            arrives, reply = host.gets_through(flow, is_expected=out, is_reply_expected=back)
            assert arrives == out, at
            assert reply in {None, back}, at
        elif flow.direction is FlowDirection.GATEWAY:
            both = passes[FlowDirection.GATEWAY, *at] and passes[FlowDirection.GATEWAY_ANSWER, *at]
            assert host.gets_through(flow, is_expected=both)[0] == both, at


def test_a_clean_host(host: VmHost) -> None:
    told = _check(host)
    assert told.code == 0
    assert not _blocked(told)
    found = {finding["name"]: finding["severity"] for finding in told.events}
    assert {found[name] for name in ("accepted", "nat", "conntrack", "tap", "owner")} == {"ok"}
    _assert_true(host)


def test_a_host_with_firewalld(host: VmHost) -> None:
    _load(host, "firewalld")
    told = _check(host)
    assert told.code == 1
    assert _places(told) == {
        ("drops", "inet", "firewalld", "filter_FORWARD_POLICIES"),
        ("drops", "inet", "firewalld", "filter_INPUT_POLICIES"),
    }
    assert {found["place"]["owner"] for found in _blocked(told)} == {"firewalld"}
    assert {found["place"]["rule"] for found in _blocked(told)} == {
        "reject with icmpx admin-prohibited"
    }
    commands = _commands(told)
    assert "firewall-cmd --permanent --zone=ocsf-nft --add-interface=vmtap-1" in commands
    assert commands[-1] == "firewall-cmd --reload"
    _assert_true(host)


def test_a_host_with_ufw(host: VmHost) -> None:
    _load(host, "ufw")
    told = _check(host)
    assert told.code == 1
    assert _places(told) == {
        ("drops", family, "filter", chain)
        for family in ("ip", "ip6")
        for chain in ("FORWARD", "INPUT")
    }
    assert {found["place"]["owner"] for found in _blocked(told)} == {"ufw"}
    assert _commands(told) == [
        "ufw route allow in on vmtap-1",
        "ufw allow in on vmtap-1 to 172.16.0.1 port 3128 proto tcp",
        "ufw allow in on vmtap-1 to fd00:16::1 port 3128 proto tcp",
    ]
    _assert_true(host)


@pytest.mark.parametrize("name", ["firewalld-allowed", "ufw-allowed"])
def test_a_host_whose_firewall_has_been_told_to_pass_it(host: VmHost, name: str) -> None:
    _load(host, name)
    told = _check(host)
    assert told.code == 0, _blocked(told)
    _assert_true(host)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_host_with_docker(host: VmHost, backend: str) -> None:
    _load(host, "docker", backend)
    told = _check(host)
    assert told.code == 1
    assert _places(told) == {("drops", "ip", "filter", "FORWARD")}
    (found,) = _blocked(told)
    assert found["place"]["owner"] == "Docker"
    assert found["place"]["backend"] == backend
    assert ("legacy table" in found["meaning"]) == (backend == "legacy")
    assert all(" -I DOCKER-USER " in each for each in found["commands"])
    _assert_true(host)
    _assert_mended(host, told)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_host_with_iptables_of_either_kind(host: VmHost, backend: str) -> None:
    rules = (
        "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n"
        "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n"
        "-A INPUT -p tcp -m multiport --dports 22,80:90 -j ACCEPT\n"
        "-A FORWARD -m mark ! --mark 0x1/0xff -j mine\n"
        "-A mine -p udp -m addrtype ! --dst-type LOCAL -m udp --dport 53 -j REJECT "
        "--reject-with icmp-port-unreachable\n"
        "-A mine -p tcp -m iprange --src-range 172.16.0.2-172.16.0.9 -m tcp --dport 443 -j DROP\n"
        "COMMIT\n"
    )
    _run(host, [_RESTORE[backend]["rules4"]], rules)
    told = _check(host)
    assert told.code == 1
    assert _places(told) == {
        ("drops", "ip", "filter", "mine"),
        ("drops", "ip", "filter", "INPUT"),
    }
    assert {found["place"]["rule"] for found in _blocked(told)} == {
        None,
        *(line for line in rules.splitlines() if line.startswith("-A mine")),
    }
    _assert_true(host)
    _assert_mended(host, told)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_host_where_a_container_publishes_the_gateways_port(host: VmHost, backend: str) -> None:
    rules = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n"
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 3128 -j DNAT --to-destination 172.17.0.2:80\n"
        "COMMIT\n"
    )
    _run(host, [_RESTORE[backend]["rules4"]], rules)
    told = _check(host)
    assert told.code == 0, _blocked(told)
    (found,) = (each for each in told.events if each["name"] == "redirects")
    assert (found["severity"], found["place"]["chain"]) == ("info", "DOCKER")
    # None that would undo it.
    assert found["commands"] == []


def test_what_is_allowed_to_a_vm_is_its_gateway_alone(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    to_the_host = [each for each in _commands(_check(host)) if "dport" in each]
    assert len(to_the_host) == 2
    assert all(
        f"daddr {gateway} tcp dport" in each
        for gateway, each in zip(("172.16.0.1", "fd00:16::1"), to_the_host, strict=True)
    )


def test_a_host_that_forwards_nothing_by_default(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    told = _check(host)
    assert told.code == 1
    assert _places(told) == {
        ("drops", "inet", "site", "through"),
        ("drops", "inet", "site", "others"),
    }
    by_chain = {found["place"]["chain"]: found for found in _blocked(told)}
    assert "its policy drops what the VM sends to the internet" in by_chain["through"]["meaning"]
    assert by_chain["others"]["place"]["rule"] == "tcp dport 1-65535 drop"
    assert isinstance(by_chain["others"]["place"]["handle"], int)
    _assert_true(host)
    _assert_mended(host, told)


def _assert_mended(host: VmHost, told: command.Outcome) -> None:
    """The commands that are named do it: nothing is dropped any more."""
    for each in _commands(told):
        subprocess.run(shlex.split(each), check=True, capture_output=True)
    after = _check(host)
    assert after.code == 0, _blocked(after)
    assert not [found for found in after.events if found["name"] == "leftover"]
    _assert_true(host)


_EARLY_AND_LATE: Final = """table inet site {
	chain early { type filter hook prerouting priority mangle; policy drop; }
	chain late { type filter hook output priority filter; policy drop; }
}
"""
_EARLY_AND_LATE_OF_IPTABLES: Final = (
    "*mangle\n:PREROUTING DROP [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    "*filter\n:OUTPUT DROP [0:0]\nCOMMIT\n"
)


def test_check_mends_a_host_that_drops_before_routing_and_on_output(host: VmHost) -> None:
    for rules in (_EARLY_AND_LATE, _EARLY_AND_LATE_OF_IPTABLES):
        nft.load(host.namespace, "flush ruleset\n")
        if rules is _EARLY_AND_LATE:
            nft.load(host.namespace, rules)
        else:
            _run(host, ["iptables-nft-restore"], rules)
        found = check.blocking(_scope(host))
        assert {each.name for each in found} == {"drops"}
        for each in found:
            assert each.commands
            for line in each.commands:
                subprocess.run(shlex.split(line), check=True, capture_output=True)
        assert check.blocking(_scope(host)) == ()
        _assert_true(host)


def test_check_shows_a_rule_that_is_gone_by_then_as_it_was_listed(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    listed = read_ruleset.read(host.namespace)
    nft.load(host.namespace, "flush chain inet site others\n")
    rules = [each.place.rule for each in judge(listed, _scope(host)) if each.place is not None]
    left = '{"payload":{"protocol":"tcp","field":"dport"}}'
    match = f'{{"op":"==","left":{left},"right":{{"range":[1,65535]}}}}'
    assert rules == [None, f'[{{"match":{match}}},{{"drop":null}}]']


def test_a_pattern_stands_for_all_its_devices(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    place = ("--netns", str(host.namespace.path))
    told = command.run("check", "--json", *place)
    assert told.code == 1
    commands = _commands(told)
    assert any("'\"vmtap-*\"'" in each for each in commands), commands
    for each in commands:
        subprocess.run(shlex.split(each), check=True, capture_output=True)
    assert command.run("check", "--json", *place).code == 0
    assert _check(host).code == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_iptables_can_not_be_asked_is_told(
    host: VmHost, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment a -j ACCEPT\nCOMMIT\n"
    _run(host, [_RESTORE[backend]["rules4"]], rules)
    assert not [each for each in check.blocking(_scope(host)) if each.name == "unread-rules"]
    program = nft.find_program
    monkeypatch.setattr(nft, "find_program", lambda name: program(name) if name == "nft" else None)
    (unread,) = (each for each in check.blocking(_scope(host)) if each.name == "unread-rules")
    assert "is not installed" in unread.meaning


def test_what_blocks_a_sandbox_on_its_way_to_the_proxy(host: VmHost) -> None:
    place = ("--netns", str(host.namespace.path), "--proxy", "198.18.0.1:3128")
    out, back = (
        f"table ip site {{\n\tchain {hook} {{\n\t\ttype filter hook {hook} priority 0\n"
        f'\t\tpolicy drop\n\t\t{device} "lo" accept\n\t}}\n}}\n'
        for hook, device in (("output", "oifname"), ("input", "iifname"))
    )
    by_iptables = "*filter\n:INPUT DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n"
    for rules in (out + back, by_iptables):
        nft.load(host.namespace, "flush ruleset\n")
        if rules is by_iptables:
            _run(host, ["iptables-nft-restore"], rules)
        else:
            nft.load(host.namespace, rules)
        told = command.run("check", "--json", *place)
        assert told.code == 1
        meanings = " ".join(found["meaning"] for found in _blocked(told))
        assert len(_blocked(told)) == 2
        assert "what the sandbox sends to its proxy (tcp 3128; IPv4)" in meanings
        assert "the proxy's answers (tcp 3128; IPv4)" in meanings
        for each in _commands(told):
            subprocess.run(shlex.split(each), check=True, capture_output=True)
        assert command.run("check", "--json", *place).code == 0


def test_the_installer_is_told_of_what_blocks_and_of_nothing_else(host: VmHost) -> None:
    assert check.blocking(_scope(host)) == ()
    nft.load(host.namespace, _POLICY_DROP)
    found = check.blocking(_scope(host))
    assert {each.name for each in found} == {"drops"}
    assert all(isinstance(each, Finding) and each.place is not None for each in found)


def test_a_namespace_that_is_not_there_is_absent() -> None:
    told = command.run("check", "--json", "--netns", "no-such-namespace")
    assert told.code == 2
    assert "no-such-namespace" in told.sentence


@pytest.mark.parametrize(
    "wrong",
    [
        ("--device", 'a"b'), ("--device", "*"), ("--subnet", "10.0.0.0"), ("--gateway-port", "0"),
        ("--proxy", "proxy.example:1"), ("--netns", "a", "--pid", "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused(wrong: tuple[str, ...]) -> None:
    told = command.run("check", *wrong)
    assert told.code == 2
    assert told.sentence


def test_nothing_is_changed_by_looking(host: VmHost) -> None:
    _load(host, "docker")
    before = _run(host, ["nft", "list", "ruleset"])
    _check(host)
    assert _run(host, ["nft", "list", "ruleset"]) == before
    assert Namespace().call(lambda: not read_ruleset.legacy_tables(host.namespace, "ip"))


def test_a_vms_fence_of_ours_is_not_in_its_own_way(host: VmHost) -> None:
    gateways = tuple(endpoint(f"{at}:{PORT}") for at in ("172.16.0.1", "[fd00:16::1]"))
    spec = FenceSpec(sandbox="vm", proxies=gateways, tap=Tap(device=DEVICE, subnets=SUBNETS))
    nft.load(host.namespace, ruleset.fence(spec, Surroundings(links=(DEVICE,)), "nflog"))
    told = _check(host)
    assert told.code == 0, _blocked(told)
    for flow in _scope(host).flows():
        if flow.direction in {FlowDirection.OUT, FlowDirection.GATEWAY}:
            assert host.gets_through(flow)[0], flow.label


def test_a_fence_of_ours_is_not_in_its_own_way(fenced: Lab) -> None:
    proxies = tuple(endpoint(f"{at}:{PROXY_PORT}") for at in (GATEWAY4, f"[{GATEWAY6}]"))
    asked = check.check_scope(fenced.sandbox_namespace, device=None, port=PORT, proxies=proxies)
    assert set(asked.links.values()) == {fenced.sandbox_device}
    assert check.blocking(asked) == ()
    other = (endpoint("203.0.113.7:3128"),)
    asked = check.check_scope(fenced.sandbox_namespace, device=None, port=PORT, proxies=other)
    found = check.blocking(asked)
    assert found
    assert {finding.remedy for finding in found} == {
        "a fence stands that accepts something else: install it anew"
    }
