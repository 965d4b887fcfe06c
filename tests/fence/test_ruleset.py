from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.fence import ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap, device_table
from ocsf_nft.fence.values import Endpoint, endpoint, exception, subnet

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
)


def rules(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()[:1] not in {"", "#"}]


def test_every_rule_of_the_policy_is_logged_with_its_own_prefix() -> None:
    text = ruleset.fence(SPEC, AROUND, "nflog")
    assert re.findall(r'log prefix "ocsf-nft:\$sandbox:(\w+):" group 77 snaplen 128', text) == [
        "egress",
        "forward",
        "ingress",
        "link",
    ]
    assert 'define sandbox = "agent-7"' in text
    assert 'define links = { "eth0", "eth1" }' in text
    assert 'define uplinks = { "eth0" }' in text


def test_kernel_log_rule_has_a_limit_and_no_group() -> None:
    logs = [line for line in rules(ruleset.fence(SPEC, AROUND, "kmsg")) if "log prefix" in line]
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


def test_policy_file_that_lacks_or_repeats_a_definition_is_refused() -> None:
    for text, times in (("", 0), ("define links = a\ndefine links = b\n", 2)):
        with pytest.raises(AssertionError, match=f"must define links once, not {times} times"):
            ruleset._define(text, "links", "c")
