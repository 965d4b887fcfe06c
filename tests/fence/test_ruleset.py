from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.fence import ruleset
from ocsf_nft.fence.spec import (
    FenceSpec,
    HostEnd,
    HostLinks,
    Surroundings,
    Tap,
    Uplink,
    device_table,
)
from ocsf_nft.fence.values import Endpoint, Subnet, endpoint, exception, subnet

SPEC = FenceSpec(
    sandbox="agent-7",
    proxies=(endpoint("10.0.0.1:3128"), endpoint("[fd00::1]:3128")),
    exceptions=(exception("udp:10.0.0.53:53"),),
    group=77,
    guard_device="veth.7",
)
AROUND = Surroundings(
    links=("eth0", "eth1"),
    uplinks=("eth0",),
    neighbours=(ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")),
    uplink_indexes=(3,),
    outer_indexes=(3, 5),
)
BOTH = ("172.16.7.1/29", "fd00:7::1/64")


def rules(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()[:1] not in {"", "#"}]


def test_every_rule_of_the_policy_is_logged_with_its_own_prefix() -> None:
    text = ruleset.fence(SPEC, AROUND, "nflog")
    for snaplen in (128, 512):
        logs = rf'log prefix "ocsf-nft:\$sandbox:(\w+):" group 77 snaplen {snaplen}'
        assert re.findall(logs, text) == ["egress", "forward", "ingress", "link"]
    assert 'define sandbox = "agent-7"' in text
    assert 'define links = { "eth0", "eth1" }' in text
    assert "add element inet ocsf_nft uplinks { 3 }" in text


def test_kernel_log_rule_has_a_limit_and_no_group() -> None:
    """The kernel's text has no names, so there is no further log budget for DNS."""
    text = ruleset.fence(SPEC, AROUND, "kmsg")
    assert "goto log_dns" not in text
    logs = [line for line in rules(text) if "log prefix" in line]
    assert len(logs) == 4
    for line in logs:
        assert "group" not in line
        assert line.startswith("limit rate 1000/second burst 2000 packets log prefix")
        assert " level info flags all counter name logged_" in line


def test_ruleset_without_log_transport_lacks_only_the_log_rules() -> None:
    logged = rules(ruleset.fence(SPEC, AROUND, "nflog"))
    unlogged = rules(ruleset.fence(SPEC, AROUND, "none"))
    assert unlogged == [line for line in logged if not line.startswith("log prefix")]


def test_ruleset_fills_the_sets_of_both_tables() -> None:
    text = ruleset.fence(SPEC, AROUND, "nflog")
    for family in ("inet", "netdev"):
        elements = f"add element {family} ocsf_nft"
        assert f"{elements} allowed4 {{ 10.0.0.1 . tcp . 3128, 10.0.0.53 . udp . 53 }}" in text
        assert f"{elements} allowed6 {{ fd00::1 . tcp . 3128 }}" in text
        assert f"{elements} neighbours6 {{ fd00::1 }}" in text
    assert "add element netdev ocsf_nft neighbours4 { 10.0.0.1 }" in text


def test_set_without_elements_gets_no_statement() -> None:
    only4 = FenceSpec(sandbox="a", proxies=(endpoint("10.0.0.1:3128"),))
    text = ruleset.fence(only4, Surroundings(), "nflog")
    assert "allowed6 {  }" not in text
    assert 'define links = { "lo" }' in text


def test_guard_has_the_table_of_its_device() -> None:
    text = ruleset.guard(SPEC, AROUND, "nflog")
    assert "table netdev ocsf_nft_veth.7 {" in text
    assert "ocsf_nft_guard" not in text
    assert 'define links = { "veth.7" }' in text
    assert "add element netdev ocsf_nft_veth.7 allowed6 { fd00::1 . tcp . 3128 }" in text


@pytest.mark.parametrize("number", [1, 128, 129, 600])
@pytest.mark.parametrize("profile", ["sandbox", "sidecar", "guard"])
def test_chains_are_attached_to_at_most_128_links_at_once(profile: str, number: int) -> None:
    links = tuple(f"link{each}" for each in range(number))
    ends = tuple(HostEnd(name=each, ifindex=9) for each in links)
    around = Surroundings(links=links, host=HostLinks(ends=ends))
    if profile == "guard":
        text, chains = ruleset.guard(SPEC, around, "nflog"), ["ingress", "egress"]
    else:
        uids = (1337,) if profile == "sidecar" else ()
        spec = FenceSpec(sandbox="x", proxies=() if uids else SPEC.proxies, proxy_uids=uids)
        text, chains = ruleset.fence(spec, around, "nflog"), ["egress"]
    adding = r"^add chain netdev \S+ (\w+) \{ .* devices = (\{ .* \}) priority"
    added = re.findall(adding, text, re.MULTILINE)
    first = re.findall(r"^define links = (.*)$", text, re.MULTILINE)
    for chain in chains:
        groups = [*first, *(group for name, group in added if name == chain)]
        names = [re.findall(r'"(.*?)"', group) for group in groups]
        assert [name for group in names for name in group] == list(links)
        assert max(map(len, names)) <= 128
    assert len(added) == len(chains) * ((number - 1) // 128)


def test_set_of_one_element_is_a_comparison_and_others_are_lookups() -> None:
    own = tuple(map(ipaddress.ip_address, ("10.0.0.2", "10.0.0.3")))
    pinned = replace(AROUND, pins=(Uplink(name="eth0", ifindex=3),))
    for addresses, expected in ((own[:1], "10.0.0.2"), (own, "@own4")):
        text = ruleset.fence(SPEC, replace(pinned, addresses=addresses), "nflog")
        found = set(re.findall(r"ip saddr (@own4|10\S+) ", text))
        assert found == {expected}
        # nft lists an index as a number or as a name.
        assert "oif @uplinks counter name seen_link" in text
        # One destination too: a service changes these without new rules.
        assert "@allowed6 accept" in text


def test_guard_judges_frames_to_groups_before_replies_whatever_is_known() -> None:
    """Without a known link address of the sandbox, a reply is not compared with one."""
    for macs in ((), ("02:00:00:00:00:07",)):
        text = ruleset.guard(SPEC, replace(AROUND, macs=macs), "nflog")
        egress = text[text.index("\tchain egress {") :]
        assert egress.index(" goto to_group") < egress.index(" jump usual_reply")


def test_guard_compares_the_device_only_if_another_end_is_guarded_too() -> None:
    uplink, other = HostEnd(name="v0", ifindex=7), HostEnd(name="v1", ifindex=8, is_uplink=False)
    names = re.compile(r"[io]ifname (?:!= )?\$uplinks")
    for ends, expected in (((), 0), ((uplink,), 0), ((uplink, other), 7)):
        text = ruleset.guard(SPEC, replace(AROUND, host=HostLinks(ends=ends)), "nflog")
        assert len(names.findall(text)) == expected
        assert ("define uplinks = " in text) == bool(expected)
    assert 'define uplinks = { "v0" }' in text


@pytest.mark.parametrize("device", ["a{b}", "a;b", "0@x", "-"])
def test_table_name_of_a_guard_is_an_identifier_for_any_device_name(device: str) -> None:
    assert re.fullmatch(r"ocsf_nft_[A-Za-z0-9._-]+", device_table(device))


_RULES_OF_SPEC = frozenset(rules(ruleset.fence(SPEC, Surroundings(), "nflog")))
_NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True).filter(
    lambda name: name not in {".", ".."}
)
_ENDPOINTS = st.builds(
    Endpoint,
    st.sampled_from(["tcp", "udp"]),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(1, 65535),
)


@given(
    name=_NAMES, endpoints=st.lists(_ENDPOINTS, min_size=1, max_size=5), group=st.integers(1, 65535)
)
def test_values_change_only_their_own_lines(
    name: str, endpoints: list[Endpoint], group: int
) -> None:
    spec = FenceSpec(sandbox=name, proxies=tuple(endpoints), group=group)
    text = ruleset.fence(spec, Surroundings(), "nflog")
    changed = [line for line in rules(text) if line not in _RULES_OF_SPEC]
    assert all(
        line.startswith(("define ", "comment ", "log prefix ", "add element ")) for line in changed
    )


@pytest.mark.parametrize("profile", ["sandbox", "sidecar", "tap"])
def test_exclusive_fence_differs_only_in_its_flags(profile: str) -> None:
    spec = {
        "sandbox": FenceSpec(sandbox="a", proxies=SPEC.proxies, guard_device="veth7"),
        "sidecar": FenceSpec(sandbox="a", proxy_uids=(7,)),
        "tap": FenceSpec(
            sandbox="a",
            proxies=SPEC.proxies,
            tap=Tap(device="v0", subnets=(subnet("10.0.0.1/30"),)),
        ),
    }[profile]
    around = Surroundings(links=("v0",), ifindex=3)
    plain = ruleset.fence_and_guard(spec, around, "nflog")
    exclusive = ruleset.fence_and_guard(replace(spec, is_owned=True), around, "nflog")
    assert exclusive != plain
    without_flags = exclusive.replace(f"\n\t{ruleset.EXCLUSIVE_FLAGS}", "").replace(
        f" {{ {ruleset.EXCLUSIVE_FLAGS} }}", ""
    )
    assert without_flags == plain
    table_lines = [line for line in exclusive.splitlines() if line.startswith("table ")]
    assert exclusive.count(ruleset.EXCLUSIVE_FLAGS) == len(table_lines)


def _tap(*subnets: str, mac: str | None = None) -> Tap:
    return Tap(device="vmtap-0", subnets=tuple(map(subnet, subnets)), mac=mac)


def _text(*subnets: str, sandbox: str = "vm", mac: str | None = None) -> str:
    spec = FenceSpec(
        sandbox=sandbox,
        proxies=(endpoint("172.16.7.1:3128"), endpoint("[fd00:7::1]:3128")),
        tap=_tap(*subnets, mac=mac),
    )
    return ruleset.fence(spec, Surroundings(links=("vmtap-0",), ifindex=7), "nflog")


@pytest.mark.parametrize(
    ("requested", "vm"),
    [
        ("172.16.7.1/30", "{ 172.16.7.2 }"),
        ("172.16.7.2/30", "{ 172.16.7.1 }"),
        ("172.16.7.0/31", "{ 172.16.7.1 }"),
        ("172.16.7.1/31", "{ 172.16.7.0 }"),
        ("10.0.0.1/24", "{ 10.0.0.2-10.0.0.254 }"),
        ("10.0.0.5/24", "{ 10.0.0.1-10.0.0.4, 10.0.0.6-10.0.0.254 }"),
        ("fd00::1/126", "{ fd00::2-fd00::3 }"),
        ("fd00::1/127", "{ fd00:: }"),
        ("fd00::3/126", "{ fd00::1-fd00::2 }"),
        ("fd00::1/64", "{ fd00::2-fd00::ffff:ffff:ffff:ffff }"),
    ],
)
def test_vm_may_have_all_unused_addresses_of_its_subnet(requested: str, vm: str) -> None:
    found = ruleset.vm_addresses(_tap(requested))
    version = 6 if ":" in requested else 4
    assert found == {
        f"vm{version}": vm,
        f"subnet{version}": str(ipaddress.ip_interface(requested).network),
    }


@given(
    version=st.sampled_from([4, 6]),
    length=st.integers(0, 8),
    number=st.integers(0, 255),
    base=st.integers(1, 1000),
)
def test_ranges_of_a_vm_are_its_subnet_without_the_taken_addresses(
    version: int, length: int, number: int, base: int
) -> None:
    bits = 32 if version == 4 else 128
    size = 1 << length
    address = (10 << bits - 8) + base * size + number % size
    network = ipaddress.ip_interface((address, bits - length)).network
    try:
        requested: Subnet = subnet(f"{ipaddress.ip_address(address)}/{bits - length}")
    except UsageError:  # no subnet of a VM: see test_values
        return
    free = ruleset.vm_addresses(Tap(device="t", subnets=(requested,)))[f"vm{version}"]
    found = set()
    for part in free.strip("{ }").split(", "):
        first, _, last = part.partition("-")
        ends = int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last or first))
        found |= set(range(ends[0], ends[1] + 1))
    taken = {int(requested.ip)}
    if size > 2:
        taken |= {int(network[0])} | ({int(network[-1])} if version == 4 else set())
    assert found == set(range(int(network[0]), int(network[-1]) + 1)) - taken


def test_rules_of_a_vm_name_its_device_and_its_addresses() -> None:
    text = _text(*BOTH)
    assert 'define links = { "vmtap-0" }' in text
    assert "define vm4 = { 172.16.7.2-172.16.7.6 }" in text
    assert "define subnet6 = fd00:7::/64" in text
    assert "ocsf_nft_vmtap {" not in text
    assert re.findall(
        r'log prefix "ocsf-nft:\$sandbox:([\w-]+):" group 4001 snaplen 128', text
    ) == [
        "vm-forward",
        "vm-input",
        "vm-ingress",
        "vm-link",
    ]
    assert "add element inet ocsf_nft_vmtap-0 allowed4 { 172.16.7.1 . tcp . 3128 }" in text


@pytest.mark.parametrize(("subnets", "missing"), [(BOTH[:1], "6"), (BOTH[1:], "4")])
def test_no_rule_accepts_a_family_in_which_a_vm_has_no_address(
    subnets: tuple[str, ...], missing: str
) -> None:
    """The name of the sandbox makes no difference."""
    text = _text(*subnets, sandbox=f"vm{missing}")
    assert f"$vm{missing}" not in text
    assert f"$subnet{missing}" not in text
    assert f"define vm{missing}" not in text
    assert f'comment "fence of sandbox vm{missing}"' in text
    policy = text[text.index("chain prerouting") :]
    accepted = [line for line in policy.splitlines() if line.endswith("accept")]
    family = "ip6" if missing == "6" else "ip "
    # The destination may be allowed; the source address determines the family of the line.
    source_matches = [line for line in accepted if family in line and "daddr ." not in line]
    assert source_matches == []


def test_rules_of_a_vm_do_not_account_by_owner() -> None:
    text = _text(*BOTH)
    assert "skuid >= 0" not in text
    assert "account_owned" not in text


def test_no_rule_refuses_by_a_set_of_ranges() -> None:
    """The kernel fills such a set shortly after it adds the rules that use it."""
    for line in _text(*BOTH).splitlines():
        # A line that refuses all senders except those in a set also refuses them while the set is
        # empty.
        if "goto refuse" in line and " != {" not in line:
            assert not re.search(r"\{[^}]*[0-9a-f:](?:-[0-9a-f]|/\d)[^}]*\}|\$vm", line), line


def test_configured_link_address_is_the_element_of_its_set() -> None:
    assert "macs {" in _text(*BOTH)
    assert "add element netdev ocsf_nft_vmtap-0 macs" not in _text(*BOTH)
    configured = _text(*BOTH, mac="02:00:00:00:07:02")
    assert "add element netdev ocsf_nft_vmtap-0 macs { 02:00:00:00:07:02 }" in configured
    for text, sets in ((None, 4), ("02:00:00:00:07:02", 5)):
        spec = FenceSpec(
            sandbox="vm", proxies=(endpoint("172.16.7.1:3128"),), tap=_tap(*BOTH, mac=text)
        )
        assert len(ruleset.static_sets(spec)) == sets
