"""The sizes, timeouts and limits of a loaded fence, as the kernel reports them.

They take effect only after minutes or under a flood. Each test states what depends on them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from ocsf_nft import netns
from ocsf_nft.fence import nft, rule_counters, ruleset
from ocsf_nft.fence.spec import FenceSpec, HostEnd, HostLinks, Surroundings, Tap, Uplink
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.flow import KINDS
from ocsf_nft.flows import flow_counter
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.flow import Kind

pytestmark = pytest.mark.kernel

_GROUP: Final = 77
_PROXIES: Final = (endpoint("10.0.0.1:3128"), endpoint("[fd00::1]:3128"))
_TAP: Final = Tap(device="d0", subnets=(subnet("10.0.0.1/29"), subnet("fd00::1/64")))
_AROUND: Final = Surroundings(
    links=("d0",), uplinks=("d0",), neighbours=(ipaddress.ip_address("10.0.0.1"),), ifindex=7
)
_FENCES: Final = {
    "sandbox": FenceSpec(sandbox="a", proxies=_PROXIES, group=_GROUP),
    "guard": FenceSpec(sandbox="a", proxies=_PROXIES, group=_GROUP, guard_device="d0"),
    "sidecar": FenceSpec(sandbox="a", proxies=_PROXIES, group=_GROUP, proxy_uids=(3128,)),
    "tap": FenceSpec(sandbox="a", proxies=_PROXIES, group=_GROUP, tap=_TAP),
    "permissive": FenceSpec(sandbox="a", proxies=_PROXIES, group=_GROUP, is_permissive=True),
    "permissive tap": FenceSpec(
        sandbox="a", proxies=_PROXIES, group=_GROUP, tap=_TAP, is_permissive=True
    ),
}
#: RFC 6298: the longest pause before a TCP retransmission.
_LONGEST_RESEND: Final = 120
#: The ports that a client's kernel chooses from (net.ipv4.ip_local_port_range).
_CLIENT_PORTS: Final = 60_999 - 32_768 + 1
_FLOW_BURST, _OTHER_BURST = 4, 10
#: Packets a second, and at once.
_DNS_BUDGET = (10, 400)
#: Log budgets by their set: whether the rule is for packets beyond the budget; rate; and burst.
_BUDGETS: Final = {
    "logged4": (True, 1, _FLOW_BURST),
    "logged6": (True, 1, _FLOW_BURST),
    "logged_others": (False, 1, _OTHER_BURST),
    "logged_dns4": (False, *_DNS_BUDGET),
    "logged_dns6": (False, *_DNS_BUDGET),
}
#: The sets of the quotas of new flows, and their rules.
_QUOTA_SETS: Final = "(shared4|shared6|new_flows|first_flows)_(.*)"


class Loaded:
    """A ruleset as the kernel lists it."""

    def __init__(self, name: str) -> None:
        self.name = name
        spec = _FENCES[name]
        render = ruleset.guard if name == "guard" else ruleset.fence
        text = render(spec, _AROUND, "nflog")
        self.text, objects = netns.in_scratch(lambda: _load(text))
        self.sets: list[dict[str, Any]] = [each["set"] for each in objects if "set" in each]
        tables = spec.guard_tables if name == "guard" else spec.tables
        self.rules = {rule for rules in tables.values() for rule in rules}

    def named(self, pattern: str) -> Iterator[tuple[re.Match[str], dict[str, Any]]]:
        for each in self.sets:
            if found := re.fullmatch(pattern, each["name"]):
                yield found, each


def _load(text: str) -> tuple[str, list[dict[str, Any]]]:
    nft.load(HOST, text)
    listed = [
        subprocess.run(["nft", *options], capture_output=True, text=True, check=True).stdout
        for options in (("list", "ruleset"), ("-j", "list", "sets"))
    ]
    return listed[0], json.loads(listed[1])["nftables"]


@pytest.fixture(scope="module", params=list(_FENCES))
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(request.param)


def test_counting_sets_have_the_size_and_timeout_of_their_readers(
    loaded: Loaded,
) -> None:
    found = list(loaded.named(rf"({'|'.join(KINDS)})_(.*)"))
    assert len(found) == len(KINDS) * len(loaded.rules)
    for name, each in found:
        assert each["size"] == _size(name[1], name[2]), each["name"]
        assert each["timeout"] * 1000 == flow_counter.ELEMENT_TIMEOUT_MS, each["name"]
        assert sorted(each["flags"]) == ["dynamic", "timeout"]
        assert each["stmt"] == [{"counter": None}]


def _size(kind: str, rule: str) -> int:
    """Return the size of a rule's set: a rule without quotas has no reserve."""
    size = rule_counters.SIZES[cast("Kind", kind)]
    has_reserve = rule.removesuffix("_permissive") in {"egress", "link"}
    return size if kind == "others" or has_reserve else size // 2


def test_log_budgets_outlast_their_refill(
    loaded: Loaded,
) -> None:
    sizes = {"4": "flows4", "6": "flows6", "_others": "others"}
    found = list(loaded.named(r"logged(4|6|_others)_(.*)"))
    assert len(found) == len(sizes) * len(loaded.rules)
    for name, each in found:
        burst = _OTHER_BURST if name[1] == "_others" else _FLOW_BURST
        assert 2 * burst <= each["timeout"] <= flow_counter.ELEMENT_TIMEOUT_MS / 1000
        assert each["size"] == _size(sizes[name[1]], name[2])
        assert sorted(each["flags"]) == ["dynamic", "timeout"]


def test_log_budgets_of_dns_outlast_their_refill_and_are_few(loaded: Loaded) -> None:
    rate, burst = _DNS_BUDGET
    found = list(loaded.named(r"logged_dns[46]_.*"))
    assert len(found) == 2 * len(loaded.rules)
    for _, each in found:
        assert burst / rate < each["timeout"] <= flow_counter.ELEMENT_TIMEOUT_MS / 1000
        assert each["size"] == 64
        assert sorted(each["flags"]) == ["dynamic", "timeout"]


def test_flow_sets_outlast_the_longest_pause_of_tcp(loaded: Loaded) -> None:
    """Their timeout is at most that of counts, and their size holds all ports of a client."""
    for name, each in loaded.named("(reported_peers|proxied|addressed|excepted)[46]"):
        assert 2 * _LONGEST_RESEND < each["timeout"] <= flow_counter.ELEMENT_TIMEOUT_MS / 1000
        assert sorted(each["flags"]) == ["dynamic", "timeout"]
        size = each["size"] if name[1] == "proxied" else 4 * each["size"]
        assert 2 * _CLIENT_PORTS <= size <= 3 * _CLIENT_PORTS


def test_permissive_mark_is_one_bit(
    loaded: Loaded,
) -> None:
    bits = re.findall(r"meta mark (?:set meta mark [|]|&) (0x[0-9a-f]+)", loaded.text)
    bits += re.findall(r"meta mark & \S+ == (0x[0-9a-f]+)", loaded.text)
    assert bool(bits) == loaded.name.startswith("permissive")
    assert len(set(bits)) <= 1
    assert all(int(bit, 16).bit_count() == 1 for bit in bits)


def test_no_rule_reads_the_ethertype_together_with_a_link_address() -> None:
    """Before Linux 6.6, the kernel then reads no VLAN tag that it has taken out of the frame."""
    mac = "02:00:00:00:00:07"
    around = dataclasses.replace(
        _AROUND,
        addresses=(ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("fd00::2")),
        macs=(mac,),
        pins=(Uplink(name="d0", ifindex=7, mac=mac),),
        host=HostLinks(ends=(HostEnd(name="d0", ifindex=7),), gateway_macs=(mac,)),
    )
    texts = [ruleset.fence(_FENCES[each], around, "nflog") for each in ("sandbox", "sidecar")]
    texts.append(ruleset.guard(_FENCES["guard"], around, "nflog"))
    for text in texts:
        loads = netns.in_scratch(partial(_link_loads, text))
        assert (6, 6) in loads
        assert (2, 12) in loads
        assert all(size + offset <= 12 or offset >= 12 for size, offset in loads)


def _link_loads(text: str) -> set[tuple[int, int]]:
    """Return size and offset of each load from the link header in a loaded ruleset."""
    nft.load(HOST, text)
    listed = subprocess.run(
        ["nft", "--debug=netlink", "list", "ruleset"], capture_output=True, text=True, check=True
    )
    loads = re.findall(r"payload load (\d+)b @ link header \+ (\d+)", listed.stdout)
    return {(int(size), int(offset)) for size, offset in loads}


def test_vm_has_one_link_address(loaded: Loaded) -> None:
    for _, each in loaded.named("macs"):
        assert each["size"] == 1
        assert "timeout" not in each
        assert each["flags"] == ["dynamic"]


def test_sets_of_the_operator_never_expire(loaded: Loaded) -> None:
    found = [each for _, each in loaded.named("(allowed|neighbours)[46]")]
    assert found
    assert not [each for each in found if each.keys() & {"timeout", "size", "flags"}]


def test_base_chains_drop_by_policy(loaded: Loaded) -> None:
    """Permissive chains accept. The IP chains of a VM check only packets of its device."""
    chains = re.findall(r"hook (\w+) .*priority \S+; policy (\w+);", loaded.text)
    assert chains
    expected = "accept" if loaded.name.startswith("permissive") else "drop"
    for hook, policy in chains:
        own = hook == "ingress" or not loaded.name.endswith("tap")
        assert policy == (expected if own else "accept"), hook


def test_log_statements_have_the_rule_the_group_and_headers_alone(loaded: Loaded) -> None:
    """IPv6 and TCP headers with all options have 100 bytes. DNS has a statement of its own."""
    logs = re.findall(
        r'log prefix "ocsf-nft:a:([\w-]+):(?:permissive:)?" group (\d+) snaplen (\d+) '
        r'counter name "logged_([\w-]+?)(?:_permissive)?"',
        loaded.text,
    )
    assert {rule for rule, _, _, _ in logs} == loaded.rules
    assert len(logs) == 2 * len(loaded.rules) == loaded.text.count("log prefix")
    for rule, group, snaplen, counter in logs:
        assert counter == rule
        assert int(group) == _GROUP
        assert 100 <= int(snaplen) <= 128 or int(snaplen) == 512
    of_dns = [rule for rule, _, snaplen, _ in logs if int(snaplen) == 512]
    assert sorted(of_dns) == sorted(loaded.rules)
    assert all(f"chain log_dns_{rule}" in loaded.text for rule in of_dns)


def test_log_budgets_have_a_burst_and_a_rate(
    loaded: Loaded,
) -> None:
    budgets = re.findall(
        rf"(?:update @({'|'.join(_BUDGETS)})_\S+ \{{[^{{}}]* )?"
        r"limit rate (over )?(\d+)/second burst (\d+) packets",
        re.sub(r"update @new_flows_\S+ \{.*? \}", "", loaded.text),
    )
    assert len(budgets) == (17 if "account_owned" in loaded.text else 9) * len(loaded.rules)
    for name, is_over, rate, burst in budgets:
        # Packets that fit into no set share one budget.
        assert (bool(is_over), int(rate), int(burst)) == _BUDGETS.get(name, (False, 100, 200)), name


def test_quotas_of_new_flows_leave_a_reserve_of_slots(loaded: Loaded) -> None:
    quotas = set(
        re.findall(
            r"update @(new_flows|first_flows)_\S+ \{ (?:meta skuid|4294967295)"
            r" limit rate (\d+/\w+) burst (\d+) packets \}",
            loaded.text,
        )
    )
    sets = {f"{name[1]} {name[2]}": each for name, each in loaded.named(_QUOTA_SETS)}
    limited = loaded.rules & {"egress", "link"}
    assert {name.split()[1] for name in sets} == limited
    assert len(sets) == 4 * len(limited)
    if not limited:
        assert not quotas
        return
    assert quotas == {("new_flows", "10/second", "4096"), ("first_flows", "12/hour", "4")}
    slots, seconds = rule_counters.SIZES["flows4"], flow_counter.ELEMENT_TIMEOUT_MS / 1000
    for rule in limited:
        shared4, shared6, usual, first = (
            sets[f"{name} {rule}"] for name in ("shared4", "shared6", "new_flows", "first_flows")
        )
        assert shared4["size"] == shared6["size"] >= 2 * (4096 + 10 * seconds)
        assert shared4["size"] + 4 * first["size"] == slots
        assert shared4["timeout"] == shared6["timeout"] > seconds
        assert usual["timeout"] >= 4096 / 10
        assert first["timeout"] >= 4 * 3600 / 12
        assert usual["size"] >= first["size"]


@pytest.mark.parametrize("name", ["sandbox", "sidecar"])
def test_loopback_works_without_another_link(name: str) -> None:
    """The netdev chain is then attached to loopback."""

    def talk() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        nft.load(HOST, ruleset.fence(_FENCES[name], Surroundings(), "nflog"))
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((address, 9), family=family):
                socket.create_connection((address, 9), 5).close()

    netns.in_scratch(talk)
