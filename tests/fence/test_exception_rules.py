"""Rules for exceptions that are networks or have a range of ports, in the text of a ruleset."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.fence import exception_rules, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap
from ocsf_nft.fence.values import Destination, endpoint, exception, subnet
from tests.fence.destinations import DESTINATIONS

_PROXIES = (endpoint("10.0.0.1:3128"),)
_SPECS = {
    "sandbox": FenceSpec(sandbox="a", proxies=_PROXIES, guard_device="g0"),
    "sidecar": FenceSpec(sandbox="a", proxy_uids=(7,)),
    "tap": FenceSpec(
        sandbox="a",
        proxies=_PROXIES,
        tap=Tap(device="v0", subnets=(subnet("172.16.7.1/29"), subnet("fd00:7::1/64"))),
    ),
}


_AROUND = Surroundings(ifindex=1, addresses=(IPv4Address("192.0.2.7"), IPv6Address("2001:db8::7")))
#: Ends of rules for exceptions.
_ENDS = (" accept", *(f" goto {chain}" for chain in (
    "excepted", "to_excepted", "to_machine", "discovery_to_gateway", "resolution_of_excepted",
    "learn_excepted", "learn_excepted6",
)))  # fmt: skip


def _text(profile: str, *exceptions: str | Destination) -> str:
    found = tuple(each if isinstance(each, Destination) else exception(each) for each in exceptions)
    spec = replace(_SPECS[profile], exceptions=found)
    return ruleset.fence_and_guard(spec, _AROUND, "nflog")


def _rules(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()[:1] not in {"", "#"}]


@pytest.mark.parametrize("profile", _SPECS)
def test_ruleset_without_ranges_has_no_rule_for_them(profile: str) -> None:
    text = _text(profile, "udp:10.0.0.9:53")
    assert "exception4" not in text
    assert "exception_" not in text
    assert "broadcast address" not in re.sub(r"^# .*$", "", text, flags=re.MULTILINE)
    sets = {"sandbox": 3, "sidecar": 2, "tap": 1}
    assert text.count("10.0.0.9 . udp . 53 }") == sets[profile]


@pytest.mark.parametrize(
    ("profile", "times4", "times6"), [("sandbox", 7, 6), ("sidecar", 3, 3), ("tap", 3, 3)]
)
def test_rules_are_repeated_for_each_range(profile: str, times4: int, times6: int) -> None:
    without = _rules(_text(profile))
    rules = _rules(
        _text(profile, "tcp:10.1.0.0/16:443", "udp:10.2.0.1:5-9", "udp:[fd00:1::/32]:53")
    )
    added = [rule for rule in rules if rule not in without]
    assert [rule for rule in rules if rule in without] == without
    for network, protocol, ports, times in (
        ("10.1.0.0/16", "tcp", "443", times4),
        ("10.2.0.1/32", "udp", "5-9", times4),
        ("fd00:1::/32", "udp", "53", times6),
    ):
        found = [rule for rule in added if network in rule and re.search(rf"\b{protocol}\b", rule)]
        assert len(found) == times, network
        # The ports of a late fragment are not in it.
        found = [rule for rule in found if "0x1fff" not in rule]
        assert all(f" {ports} " in rule for rule in found)
    neighbours = [rule for rule in added if " 443 " not in rule and "10.1.0.0/16" in rule]
    # The guard has a rule for late fragments too.
    assert len(neighbours) == (5 if profile == "sandbox" else 0)


def test_neighbours_of_a_network_have_one_rule_for_all_its_exceptions() -> None:
    text = _text("sandbox", "tcp:10.1.0.0/16:443", "tcp:10.1.0.0/16:80-90", "udp:10.1.0.0/16:53")
    rules = _rules(text)
    assert len([rule for rule in rules if "arp daddr ip 10.1.0.0/16 " in rule]) == 2
    assert len([rule for rule in rules if "arp saddr ip 10.1.0.0/16 " in rule]) == 2
    assert len([rule for rule in rules if rule.startswith("ip saddr 10.1.0.0/16")]) == 6


@given(st.lists(DESTINATIONS, max_size=4))
def test_rules_of_ranges_change_no_other_line(exceptions: list[Destination]) -> None:
    for profile in _SPECS:
        changed = set(_rules(_text(profile, *exceptions))) - set(_rules(_text(profile)))
        assert all(line.startswith("add element ") or line.endswith(_ENDS) for line in changed)
        assert not any("$exception" in line for line in changed)


def test_policy_file_without_the_values_of_an_exception_is_refused() -> None:
    with pytest.raises(AssertionError, match="must define the values of an exception once"):
        exception_rules.repeat_rules("table inet ocsf_nft\n", ())
