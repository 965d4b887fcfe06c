from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.log_prefixes import (
    _FIREWALLS,
    _FORMS,
    PREFIX_BYTES,
    PREFIX_CHARACTERS,
    Configured,
    Prefixes,
    begins,
    firewall_of,
)
from ocsf_nft.record import Prefix
from tests import strategies
from tests.conformance.corpus import TCP, V4, record

if TYPE_CHECKING:
    from ocsf_nft.record import ForeignVerdict, Record

BUILT_IN = Prefixes()

#: Prefixes of ufw 0.36.2, firewalld 2.3.1 and 0.6, Shorewall 5.2.8, OpenWrt's fw4 and fw3, and
#: Calico's Felix, and common prefixes that people write by hand.
WRITTEN: list[tuple[str, str, ForeignVerdict]] = [
    ("[UFW BLOCK] ", "UFW BLOCK", "reject"),
    ("[UFW LIMIT BLOCK] ", "UFW LIMIT BLOCK", "reject"),
    ("[UFW ALLOW] ", "UFW ALLOW", "accept"),
    ("[UFW LIMIT] ", "UFW LIMIT", "log"),
    ("[UFW AUDIT] ", "UFW AUDIT", "log"),
    ("[UFW AUDIT INVALID] ", "UFW AUDIT INVALID", "log"),
    ("filter_IN_public_REJECT: ", "filter_IN_public_REJECT", "reject"),
    ("filter_IN_drop_DROP: ", "filter_IN_drop_DROP", "drop"),
    ("filter_IN_block_REJECT: ", "filter_IN_block_REJECT", "reject"),
    ("filter_FWD_public_REJECT: ", "filter_FWD_public_REJECT", "reject"),
    ("filter_FWDI_public_REJECT: ", "filter_FWDI_public_REJECT", "reject"),
    ("filter_OUT_policy_no-mail_DROP: ", "filter_OUT_policy_no-mail_DROP", "drop"),
    (
        "filter_IN_policy_allow-host-ipv6_REJECT: ",
        "filter_IN_policy_allow-host-ipv6_REJECT",
        "reject",
    ),
    ("filter_zone_public_HOST_ICMP_BLOCK: ", "filter_zone_public_HOST_ICMP_BLOCK", "reject"),
    ("FINAL_REJECT: ", "FINAL_REJECT", "reject"),
    ("STATE_INVALID_DROP: ", "STATE_INVALID_DROP", "drop"),
    ("rpfilter_DROP: ", "rpfilter_DROP", "drop"),
    ("RFC3964_IPv4_REJECT: ", "RFC3964_IPv4_REJECT", "reject"),
    ("IN_public_REJECT: ", "IN_public_REJECT", "reject"),
    ("IN_public_DROP: ", "IN_public_DROP", "drop"),
    ("IN_block_DROP: ", "IN_block_DROP", "drop"),
    ("FWDI_public_REJECT: ", "FWDI_public_REJECT", "reject"),
    ("FWDO_external_DROP: ", "FWDO_external_DROP", "drop"),
    ("IN_public_ICMP_BLOCK: ", "IN_public_ICMP_BLOCK", "reject"),
    ("Shorewall:net-fw:DROP:", "Shorewall:net-fw:DROP", "drop"),
    ("Shorewall:net2all:REJECT:", "Shorewall:net2all:REJECT", "reject"),
    ("Shorewall:net-drop:ACCEPT:", "Shorewall:net-drop:ACCEPT", "accept"),
    ("Shorewall:net-fw:7:DROP:", "Shorewall:net-fw:7:DROP", "drop"),
    ("Shorewall:net-fw:DROP:ftp ", "Shorewall:net-fw:DROP:ftp", "drop"),
    ("Shorewall:logflags:A_DROP:", "Shorewall:logflags:A_DROP", "drop"),
    ("Shorewall:net_dnat:DNAT:", "Shorewall:net_dnat:DNAT", "log"),
    ("Shorewall6:net-fw:DROP:", "Shorewall6:net-fw:DROP", "drop"),
    ("net-fw DROP ", "net-fw DROP", "drop"),
    ("reject wan in: ", "reject wan in", "reject"),
    ("drop wan forward: ", "drop wan forward", "drop"),
    ("drop wan invalid ct state: ", "drop wan invalid ct state", "drop"),
    ("drop accept out: ", "drop accept out", "drop"),
    ("REJECT wan in: ", "REJECT wan in", "reject"),
    ("DROP wan in: ", "DROP wan in", "drop"),
    ("DROP(src wan)", "DROP(src wan)", "drop"),
    ("ACCEPT lan out: ", "ACCEPT lan out", "accept"),
    ("calico-packet: ", "calico-packet", "log"),
    ("IPTables-Dropped: ", "IPTables-Dropped", "drop"),
    ("iptables denied: ", "iptables denied", "reject"),
    ("[netfilter] DROP: ", "[netfilter] DROP", "drop"),
    ("DROP", "DROP", "drop"),
    ("DROPPED ", "DROPPED", "drop"),
    ("Reject: ", "Reject", "reject"),
    ("INPUT_REJECTED=", "INPUT_REJECTED=", "reject"),
    ("deny ", "deny", "reject"),
    ("DENY-DROP: ", "DENY-DROP", "drop"),
    ("drop/reject ", "drop/reject", "reject"),
    ("Blocked: ", "Blocked", "reject"),
    ("BLOCK ", "BLOCK", "reject"),
    ("ACCEPT:", "ACCEPT", "accept"),
    ("accepted: ", "accepted", "accept"),
    ("Allow-Ping: ", "Allow-Ping", "accept"),
    ("allowed ", "allowed", "accept"),
    ("fw PASS ", "fw PASS", "accept"),
    ("ACCEPT or DROP: ", "ACCEPT or DROP", "log"),
    ("allow-then-block ", "allow-then-block", "log"),
]

UNKNOWN = [
    "",
    " ",
    "IN-flight: ",
    "[GENEVE] ",
    "UFW BLOC",
    "dropbox: ",
    "backdrop",
    "adenied",
    "blockchain: ",
    "passport ",
    "DROP4: ",
    "\\xffDROP",
    "éDROP",
    "BLOC\u212a",
    "pa\u017f\u017f",
    "openshell:bypass:",
    "openshell:bypass::",
    "openshell:bypass:a b:",
    "openshell:bypass:a",
    "openshell:bypass:a:b:",
    "openshell:bypass:\u0661:",
    "openshell:bypass:../etc:",
    f"openshell:bypass:{'a' * 65}:",
    "openshell:bypass:a:\n:",
    "ocsf-nft:DROP:",
    "ocsf-nft:",
    "ocsf-nft:[UFW BLOCK] ",
    "DROP" + " " * PREFIX_CHARACTERS,
]


def _logged(prefix: str) -> Record:
    return record(prefix, **V4, **TCP)


@pytest.mark.parametrize(("prefix", "rule", "verdict"), WRITTEN)
def test_prefix_of_a_common_firewall_has_its_verdict(
    prefix: str, rule: str, verdict: ForeignVerdict
) -> None:
    assert BUILT_IN.of(prefix) == Prefix(None, rule, verdict)


@pytest.mark.parametrize("sandbox", ["a", "pod-1.ns_x", "a" * 64, "..", "sandbox-07d3f"])
def test_the_references_prefix_names_its_sandbox(sandbox: str) -> None:
    prefix = f"openshell:bypass:{sandbox}:"
    assert BUILT_IN.of(prefix) == Prefix(sandbox, "bypass", "reject")
    named = BUILT_IN.named(_logged(prefix))
    assert (named.sandbox, named.rule, named.verdict) == (sandbox, "bypass", "reject")


@pytest.mark.parametrize("prefix", UNKNOWN)
def test_unknown_prefix_is_a_logged_packet_with_its_text_as_the_rule(prefix: str) -> None:
    assert BUILT_IN.of(prefix) is None
    before = _logged(prefix)
    assert before.sandbox is None
    assert BUILT_IN.named(before) == replace(before, verdict="log")
    assert before.rule == prefix.strip()


@given(strategies.records())
def test_only_the_fields_from_the_prefix_of_foreign_records_change(given: Record) -> None:
    named = BUILT_IN.named(given)
    if given.sandbox is not None:
        assert named is given
        return
    assert named.verdict is not None
    assert replace(named, sandbox=None, rule=given.rule, verdict=None) == given
    assert BUILT_IN.named(named) == named


@given(strategies.HOSTILE_TEXT)
@example("filter_" + "_REJECT" * 80)
@example("Shorewall:" + ":0" * 200)
@example("drop " + "in: " * 120)
def test_hostile_prefix_is_looked_up_quickly_and_never_raises(prefix: str) -> None:
    begun = time.thread_time()
    meaning = Prefixes().of(prefix)
    assert time.thread_time() - begun < 0.1
    if meaning is not None:
        assert meaning.sandbox is None or meaning.rule == "bypass"
        assert meaning.rule in prefix or meaning.rule == "bypass"


@given(st.from_regex(r"ocsf-nft:[ -~]{0,60}", fullmatch=True))
def test_prefix_that_begins_like_ours_is_never_foreign(prefix: str) -> None:
    rows = [Configured(begins=prefix[:size], verdict="accept") for size in range(1, 8)]
    assert Prefixes(rows).of(prefix) is None


def test_number_of_cached_prefixes_is_limited() -> None:
    table = Prefixes()
    for number in range(5_000):
        assert table.of(f"DROP {number} ") == Prefix(None, f"DROP {number}", "drop")
    assert table._cached_find.cache_info().currsize == 1024


def test_configured_prefix_has_priority_over_built_in_and_the_longest_over_others() -> None:
    table = Prefixes(
        [
            Configured(begins="[UFW", verdict="log"),
            Configured(begins="[UFW BLOCK] ", verdict="drop", sandbox="vm-1", rule="ufw"),
            Configured(begins="[UFW BLOCK", verdict="accept"),
        ]
    )
    assert table.of("[UFW BLOCK] ") == Prefix("vm-1", "ufw", "drop")
    assert table.of("[UFW BLOCK]") == Prefix(None, "[UFW BLOCK]", "accept")
    assert table.of("[UFW ALLOW] ") == Prefix(None, "[UFW ALLOW]", "log")
    assert table.of("DROP ") == Prefix(None, "DROP", "drop")


def test_a_configured_prefix_is_taken_literally() -> None:
    table = Prefixes([Configured(begins="a.*[", verdict="drop")])
    assert table.of("a.*[x ") == Prefix(None, "a.*[x", "drop")
    assert table.of("axx[x ") is None
    assert table.of("A.*[x ") is None
    assert table.of(" a.*[x ") is None


def test_two_rows_with_the_same_prefix_are_an_error() -> None:
    rows = [Configured(begins="FW ", verdict=verdict) for verdict in ("drop", "accept")]
    with pytest.raises(UsageError, match='two prefixes begin with "FW "'):
        Prefixes(rows)


@pytest.mark.parametrize("text", ["x", " ", "é" * 63, "a" * PREFIX_BYTES, "ocsf-nft", "\x1b["])
def test_a_prefix_that_a_rule_can_have_can_be_configured(text: str) -> None:
    assert begins(text) == text


@pytest.mark.parametrize(
    "text", ["", "é" * 64, "a" * 128, "a\0", "ocsf-nft:", "ocsf-nft:agent:egress:"]
)
def test_a_prefix_that_no_foreign_rule_has_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        begins(text)
    assert "\n" not in str(refused.value)


def test_prefix_is_as_long_as_the_kernel_allows() -> None:
    """NF_LOG_PREFIXLEN is 128 with the NUL. Each byte that is not UTF-8 is shown as an escape."""
    for text in ("x", "x" * 127, "ü" * 63 + "x"):
        assert begins(text) == text
    for text in ("", "x" * 128, "ü" * 64):
        with pytest.raises(UsageError, match="it must have 1 to 127 bytes"):
            begins(text)
    longest = "DROP " + "x" * (4 * 127 - 5)
    assert Prefixes().of(longest) == Prefix(None, longest, "drop")
    assert Prefixes().of(f"{longest}x") is None


@pytest.mark.parametrize(
    ("prefix", "firewall"),
    [
        ("[UFW BLOCK] ", "ufw"),
        ("filter_IN_docker_REJECT: ", "firewalld"),
        ("FWDI_public_DROP: ", "firewalld"),
        ("Shorewall:fw-docker:REJECT:", "Shorewall"),
        ("Shorewall6:net2fw:DROP:", "Shorewall"),
        ("reject wan in: ", "OpenWrt"),
        ("calico-packet: ", "Calico"),
        ("openshell:bypass:agent:", "OpenShell"),
        ("[DOCKER-BLOCK] ", "Docker"),
        ("IPTables-Dropped: ", "iptables"),
        ("ip6tables denied: ", "iptables"),
        ("FWKNOP: DROP ", "fwknop"),
        ("SFW2-INext-DROP-DEFLT ", "SuSEfirewall2"),
        ("DROP ", None),
        ("dockerish-drop ", None),
        ("ufwiptables", None),
        ("", None),
    ],
)
def test_prefix_names_its_firewall(prefix: str, firewall: str | None) -> None:
    assert firewall_of(prefix) == firewall


@given(st.text())
def test_any_prefix_has_a_known_firewall_or_none(text: str) -> None:
    assert firewall_of(text) in {None, *(name for name, _ in _FORMS), *_FIREWALLS.values()}
