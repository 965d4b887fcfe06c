"""Tests of `check` on prepared hosts: real packets confirm which rules drop traffic.

The real firewalls loaded the rules in tests/check/hosts.
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
from ocsf_nft.check.blocking_rules import judge
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.fence import nft, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT
from ocsf_nft.netns import Namespace
from tests.kernel import command
from tests.kernel.vm_host import DEVICE, PORT, SUBNETS, VmHost, own_iptables_lock, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.finding import RuleLocation
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
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VmHost]:
    own_iptables_lock(tmp_path, monkeypatch)
    with vm_host() as vm:
        yield vm


def _load(host: VmHost, name: str, backend: str = "nft") -> None:
    """Load the stored rules of a host: those of nft, or of one backend of iptables."""
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
    arguments = ("--netns", str(host.namespace.path), "--device", DEVICE, *options)
    return command.run("check", "--json", *arguments, "--gateway-port", str(PORT), *more)


def _scope(host: VmHost) -> CheckScope:
    return check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS, port=PORT)


def _blocked(outcome: command.Outcome) -> list[dict[str, Any]]:
    return [found for found in outcome.events if found["severity"] == "blocked"]


def _blocking_chains(outcome: command.Outcome) -> set[tuple[str, str, str, str]]:
    return {
        (found["name"], location["family"], location["table"], location["chain"])
        for found in _blocked(outcome)
        if (location := _location(found))
    }


def _location(found: dict[str, Any]) -> dict[str, Any]:
    """Return the location of a finding's rule, from the JSON of the finding."""
    location: dict[str, Any] = found["location"]
    return location


def _locations(found: Iterable[Finding]) -> list[RuleLocation]:
    return list(filter(None, (each.location for each in found)))


def _commands(outcome: command.Outcome) -> list[str]:
    return list(dict.fromkeys(each for found in _blocked(outcome) for each in found["commands"]))


def _assert_kernel_agrees(host: VmHost) -> None:
    """Assert that the result for each flow is certain, and that real packets confirm it."""
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


def test_check_finds_nothing_on_a_clean_host(host: VmHost) -> None:
    outcome = _check(host)
    assert outcome.code == 0
    assert not _blocked(outcome)
    found = {finding["name"]: finding["severity"] for finding in outcome.events}
    assert {found[name] for name in ("accepted", "nat", "conntrack", "tap", "owner")} == {"ok"}
    _assert_kernel_agrees(host)


def test_check_names_the_chains_of_firewalld(host: VmHost) -> None:
    _load(host, "firewalld")
    outcome = _check(host)
    assert outcome.code == 1
    assert _blocking_chains(outcome) == {
        ("drops", "inet", "firewalld", "filter_FORWARD_POLICIES"),
        ("drops", "inet", "firewalld", "filter_INPUT_POLICIES"),
    }
    assert {_location(found)["owner"] for found in _blocked(outcome)} == {"firewalld"}
    assert {_location(found)["rule"] for found in _blocked(outcome)} == {
        "reject with icmpx admin-prohibited"
    }
    commands = _commands(outcome)
    assert "firewall-cmd --permanent --zone=ocsf-nft --add-interface=vmtap-1" in commands
    assert commands[-1] == "firewall-cmd --reload"
    _assert_kernel_agrees(host)


def test_check_names_the_chains_of_ufw(host: VmHost) -> None:
    _load(host, "ufw")
    outcome = _check(host)
    assert outcome.code == 1
    assert _blocking_chains(outcome) == {
        ("drops", family, "filter", chain)
        for family in ("ip", "ip6")
        for chain in ("FORWARD", "INPUT")
    }
    assert {_location(found)["owner"] for found in _blocked(outcome)} == {"ufw"}
    assert _commands(outcome) == [
        "ufw route allow in on vmtap-1",
        "ufw allow in on vmtap-1 to 172.16.0.1 port 3128 proto tcp",
        "ufw allow in on vmtap-1 to fd00:16::1 port 3128 proto tcp",
    ]
    _assert_kernel_agrees(host)


@pytest.mark.parametrize("name", ["firewalld-allowed", "ufw-allowed"])
def test_check_finds_nothing_where_the_firewall_allows_the_traffic(host: VmHost, name: str) -> None:
    _load(host, name)
    outcome = _check(host)
    assert outcome.code == 0, _blocked(outcome)
    _assert_kernel_agrees(host)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_check_names_the_chains_of_docker(host: VmHost, backend: str) -> None:
    _load(host, "docker", backend)
    outcome = _check(host)
    assert outcome.code == 1
    assert _blocking_chains(outcome) == {("drops", "ip", "filter", "FORWARD")}
    (found,) = _blocked(outcome)
    assert _location(found)["owner"] == "Docker"
    assert _location(found)["backend"] == backend
    assert ("legacy table" in found["meaning"]) == (backend == "legacy")
    assert all(" -I DOCKER-USER " in each for each in found["commands"])
    _assert_kernel_agrees(host)
    _assert_commands_unblock(host, outcome)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_check_names_the_chains_of_both_iptables_backends(host: VmHost, backend: str) -> None:
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
    outcome = _check(host)
    assert outcome.code == 1
    assert _blocking_chains(outcome) == {
        ("drops", "ip", "filter", "mine"),
        ("drops", "ip", "filter", "INPUT"),
    }
    assert {_location(found)["rule"] for found in _blocked(outcome)} == {
        None,
        *(line for line in rules.splitlines() if line.startswith("-A mine")),
    }
    _assert_kernel_agrees(host)
    _assert_commands_unblock(host, outcome)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_check_reports_a_published_gateway_port_as_info(host: VmHost, backend: str) -> None:
    rules = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n"
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 3128 -j DNAT --to-destination 172.17.0.2:80\n"
        "COMMIT\n"
    )
    _run(host, [_RESTORE[backend]["rules4"]], rules)
    outcome = _check(host)
    assert outcome.code == 0, _blocked(outcome)
    (found,) = (each for each in outcome.events if each["name"] == "redirects")
    assert (found["severity"], _location(found)["chain"]) == ("info", "DOCKER")
    # No command is shown that would remove the redirection.
    assert found["commands"] == []


def test_commands_allow_only_the_gateway_of_a_vm(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    to_the_host = [each for each in _commands(_check(host)) if "dport" in each]
    assert len(to_the_host) == 2
    assert all(
        f"daddr {gateway} tcp dport" in each
        for gateway, each in zip(("172.16.0.1", "fd00:16::1"), to_the_host, strict=True)
    )


def test_check_names_a_policy_that_drops_forwarded_traffic(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    outcome = _check(host)
    assert outcome.code == 1
    assert _blocking_chains(outcome) == {
        ("drops", "inet", "site", "through"),
        ("drops", "inet", "site", "others"),
    }
    by_chain = {_location(found)["chain"]: found for found in _blocked(outcome)}
    assert "its policy drops traffic from the VM to the internet" in by_chain["through"]["meaning"]
    assert _location(by_chain["others"])["rule"] == "tcp dport 1-65535 drop"
    assert isinstance(_location(by_chain["others"])["handle"], int)
    _assert_kernel_agrees(host)
    _assert_commands_unblock(host, outcome)


def _assert_commands_unblock(host: VmHost, outcome: command.Outcome) -> None:
    """Run the commands of the findings, and assert that nothing is dropped any more."""
    for each in _commands(outcome):
        subprocess.run(shlex.split(each), check=True, capture_output=True)
    after = _check(host)
    assert after.code == 0, _blocked(after)
    assert not [found for found in after.events if found["name"] == "leftover"]
    _assert_kernel_agrees(host)


_EARLY_AND_LATE: Final = """table inet site {
	chain early { type filter hook prerouting priority mangle; policy drop; }
	chain late { type filter hook output priority filter; policy drop; }
}
"""
_EARLY_AND_LATE_OF_IPTABLES: Final = (
    "*mangle\n:PREROUTING DROP [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    "*filter\n:OUTPUT DROP [0:0]\nCOMMIT\n"
)


def test_commands_unblock_prerouting_and_output_chains(host: VmHost) -> None:
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
        _assert_kernel_agrees(host)


def test_removed_rule_is_shown_as_it_was_listed(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    listed = read_ruleset.read(host.namespace)
    nft.load(host.namespace, "flush chain inet site others\n")
    rules = [location.rule for location in _locations(judge(listed, _scope(host)))]
    left = '{"payload":{"protocol":"tcp","field":"dport"}}'
    match = f'{{"op":"==","left":{left},"right":{{"range":[1,65535]}}}}'
    assert rules == [None, f'[{{"match":{match}}},{{"drop":null}}]']


def test_commands_for_a_pattern_unblock_all_its_devices(host: VmHost) -> None:
    nft.load(host.namespace, _POLICY_DROP)
    arguments = ("--netns", str(host.namespace.path))
    outcome = command.run("check", "--json", *arguments)
    assert outcome.code == 1
    commands = _commands(outcome)
    assert any("'\"vmtap-*\"'" in each for each in commands), commands
    for each in commands:
        subprocess.run(shlex.split(each), check=True, capture_output=True)
    assert command.run("check", "--json", *arguments).code == 0
    assert _check(host).code == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_without_their_iptables_program_are_reported_as_unread(
    host: VmHost, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment a -j ACCEPT\nCOMMIT\n"
    _run(host, [_RESTORE[backend]["rules4"]], rules)
    assert not [each for each in check.blocking(_scope(host)) if each.name == "unread-rules"]
    program = nft.find_program
    monkeypatch.setattr(nft, "find_program", lambda name: program(name) if name == "nft" else None)
    (unread,) = (each for each in check.blocking(_scope(host)) if each.name == "unread-rules")
    assert "is not installed" in unread.meaning


def test_check_names_rules_that_block_a_sandbox_from_its_proxy(host: VmHost) -> None:
    arguments = ("--netns", str(host.namespace.path), "--proxy", "198.18.0.1:3128")
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
        outcome = command.run("check", "--json", *arguments)
        assert outcome.code == 1
        meanings = " ".join(found["meaning"] for found in _blocked(outcome))
        assert len(_blocked(outcome)) == 2
        assert "traffic from the sandbox to its proxy (tcp 3128; IPv4)" in meanings
        assert "the proxy's answers to the sandbox (tcp 3128; IPv4)" in meanings
        for each in _commands(outcome):
            subprocess.run(shlex.split(each), check=True, capture_output=True)
        assert command.run("check", "--json", *arguments).code == 0


def test_blocking_returns_only_blocking_findings(host: VmHost) -> None:
    assert check.blocking(_scope(host)) == ()
    nft.load(host.namespace, _POLICY_DROP)
    found = check.blocking(_scope(host))
    assert {each.name for each in found} == {"drops"}
    assert all(isinstance(each, Finding) for each in found)
    assert len(_locations(found)) == len(found)


def test_check_of_a_missing_namespace_fails() -> None:
    outcome = command.run("check", "--json", "--netns", "no-such-namespace")
    assert outcome.code == 2
    assert "no-such-namespace" in outcome.sentence


@pytest.mark.parametrize(
    "wrong",
    [
        ("--device", 'a"b'), ("--device", "*"), ("--subnet", "10.0.0.0"), ("--gateway-port", "0"),
        ("--proxy", "proxy.example:1"), ("--netns", "a", "--pid", "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_check_fails_with_an_invalid_value(wrong: tuple[str, ...]) -> None:
    outcome = command.run("check", *wrong)
    assert outcome.code == 2
    assert outcome.sentence


def test_check_changes_nothing(host: VmHost) -> None:
    _load(host, "docker")
    before = _run(host, ["nft", "list", "ruleset"])
    _check(host)
    assert _run(host, ["nft", "list", "ruleset"]) == before
    assert Namespace().call(lambda: not read_ruleset.legacy_tables(host.namespace, "ip"))


def test_own_fence_of_a_vm_does_not_block_its_traffic(host: VmHost) -> None:
    gateways = tuple(endpoint(f"{at}:{PORT}") for at in ("172.16.0.1", "[fd00:16::1]"))
    spec = FenceSpec(sandbox="vm", proxies=gateways, tap=Tap(device=DEVICE, subnets=SUBNETS))
    nft.load(host.namespace, ruleset.fence(spec, Surroundings(links=(DEVICE,)), "nflog"))
    outcome = _check(host)
    assert outcome.code == 0, _blocked(outcome)
    for flow in _scope(host).flows():
        if flow.direction in {FlowDirection.OUT, FlowDirection.GATEWAY}:
            assert host.gets_through(flow)[0], flow.label


def test_own_fence_of_a_sandbox_does_not_block_its_traffic(fenced: Lab) -> None:
    proxies = tuple(endpoint(f"{at}:{PROXY_PORT}") for at in (GATEWAY4, f"[{GATEWAY6}]"))
    scope = check.check_scope(fenced.sandbox_namespace, device=None, port=PORT, proxies=proxies)
    assert set(scope.links.values()) == {fenced.sandbox_device}
    assert check.blocking(scope) == ()
    other = (endpoint("203.0.113.7:3128"),)
    scope = check.check_scope(fenced.sandbox_namespace, device=None, port=PORT, proxies=other)
    found = check.blocking(scope)
    assert found
    (finding,) = found
    assert (finding.name, finding.severity) == ("active-fence", "info")
    assert finding.commands == ()
    assert "install it again" in (finding.remedy or "")
