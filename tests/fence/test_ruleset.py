from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.fence import ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap
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


def test_the_kernel_log_form_has_a_budget_and_no_group() -> None:
    logs = [line for line in rules(ruleset.fence(SPEC, AROUND, "kmsg")) if "log prefix" in line]
    assert len(logs) == 4
    for line in logs:
        assert "group" not in line
        assert line.startswith("limit rate 1000/second burst 2000 packets log prefix")
        assert " level info flags all counter name logged_" in line


def test_without_log_support_only_the_log_rules_are_left_out() -> None:
    logged = rules(ruleset.fence(SPEC, AROUND, "nflog"))
    unlogged = rules(ruleset.fence(SPEC, AROUND, "none"))
    assert unlogged == [line for line in logged if not line.startswith("log prefix")]


def test_the_sets_of_both_tables_get_their_elements() -> None:
    text = ruleset.fence(SPEC, AROUND, "nflog")
    for family in ("inet", "netdev"):
        elements = f"add element {family} ocsf_nft"
        assert f"{elements} allowed4 {{ 10.0.0.1 . tcp . 3128, 10.0.0.53 . udp . 53 }}" in text
        assert f"{elements} allowed6 {{ fd00::1 . tcp . 3128 }}" in text
        assert f"{elements} neighbours6 {{ fd00::1 }}" in text
    assert "add element netdev ocsf_nft neighbours4 { 10.0.0.1 }" in text


def test_a_set_without_elements_gets_no_line_that_nft_would_refuse() -> None:
    only4 = FenceSpec(sandbox="a", proxies=(endpoint("10.0.0.1:3128"),))
    text = ruleset.fence(only4, Surroundings(), "nflog")
    assert "allowed6 {  }" not in text
    assert 'define links = { "lo" }' in text


def test_the_guard_is_a_table_of_its_own_device() -> None:
    text = ruleset.guard(SPEC, AROUND, "nflog")
    assert "table netdev ocsf_nft_veth.7 {" in text
    assert "ocsf_nft_guard" not in text
    assert 'define links = { "veth.7" }' in text
    assert "add element netdev ocsf_nft_veth.7 allowed6 { fd00::1 . tcp . 3128 }" in text


@pytest.mark.parametrize("device", ["a{b}", "a;b", "0@x", "-"])
def test_a_guards_table_name_is_an_identifier_whatever_the_device_is_called(device: str) -> None:
    assert re.fullmatch(r"ocsf_nft_[A-Za-z0-9._-]+", ruleset.device_table(device))


_RULES_OF_SPEC = frozenset(rules(ruleset.fence(SPEC, Surroundings(), "nflog")))
_NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True).filter(
    lambda name: name not in {".", ".."}
)
_PLACES = st.builds(
    Endpoint,
    st.sampled_from(["tcp", "udp"]),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(1, 65535),
)


@given(name=_NAMES, places=st.lists(_PLACES, min_size=1, max_size=5), group=st.integers(1, 65535))
def test_values_change_no_rule_but_their_own(name: str, places: list[Endpoint], group: int) -> None:
    spec = FenceSpec(sandbox=name, proxies=tuple(places), group=group)
    text = ruleset.fence(spec, Surroundings(), "nflog")
    changed = [line for line in rules(text) if line not in _RULES_OF_SPEC]
    assert all(
        line.startswith(("define ", "comment ", "log prefix ", "add element ")) for line in changed
    )


@pytest.mark.parametrize("profile", ["sandbox", "sidecar", "tap"])
def test_a_fence_that_may_be_held_is_the_same_but_for_that(profile: str) -> None:
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
    plain = ruleset.whole(spec, around, "nflog")
    owned = ruleset.whole(replace(spec, is_owned=True), around, "nflog")
    assert owned != plain
    bare = owned.replace(f"\n\t{ruleset.OWNED}", "").replace(f" {{ {ruleset.OWNED} }}", "")
    assert bare == plain
    opened = [line for line in owned.splitlines() if line.startswith("table ")]
    assert owned.count(ruleset.OWNED) == len(opened)


def test_policy_file_that_lacks_or_repeats_a_definition_is_refused() -> None:
    for text, times in (("", 0), ("define links = a\ndefine links = b\n", 2)):
        with pytest.raises(AssertionError, match=f"must define links once, not {times} times"):
            ruleset._define(text, "links", "c")
