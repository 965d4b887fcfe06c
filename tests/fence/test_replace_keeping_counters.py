from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.fence import replace_keeping_counters, ruleset
from ocsf_nft.fence.spec import TABLE, FenceSpec, Surroundings, TableId, Tap, device_table
from ocsf_nft.fence.values import endpoint, subnet

SPEC = FenceSpec(sandbox="lab", proxies=(endpoint("10.0.0.1:3128"),), guard_device="veth7")
DEFINITION = ruleset.fence(SPEC, Surroundings(links=("eth0", "eth1")), "nflog")
INET, NETDEV = (TableId(family, TABLE) for family in ("inet", "netdev"))
#: Sets of interfaces and own addresses.
_PINNED = ("uplinks", "outer", "own4", "own6", "solicited6")
FLOWS = """\tset flows4_egress { # handle 7
\t\ttypeof meta skuid . meta l4proto . ip daddr . th dport
\t\tsize 32768
\t\tflags dynamic,timeout
\t\tcounter
\t\ttimeout 10m
\t}
"""
COUNTER = "\tcounter refused_egress { # handle 5\n\t}\n"
ACCOUNT = (
    '\tchain account_egress { # handle 9\n\t\tcounter name "refused_egress" # handle 14\n\t}\n'
)
EGRESS = """\tchain egress { # handle 70
\t\ttype filter hook egress devices = { eth0, old0 } priority 2147483647; policy drop;
\t\tgoto refuse_link # handle 71
\t}
"""


def inet(*parts: str, comment: str = '\tcomment "fence of sandbox lab"\n') -> str:
    return f"table inet ocsf_nft {{ # handle 3\n{comment}" + "\n".join(parts) + "}\n"


def netdev(*parts: str) -> str:
    return "table netdev ocsf_nft { # handle 4\n" + "\n".join(parts) + "}\n"


def statements(text: str | None) -> list[str]:
    """Return the statements of the ruleset that the definition lacks."""
    assert text is not None
    return [
        line for line in text.splitlines() if line.startswith(("flush ", "delete ", "destroy "))
    ]


def test_replacement_preserves_counters_and_deletes_rules() -> None:
    made = statements(
        replace_keeping_counters.replacement_text(DEFINITION, {INET: inet(FLOWS, COUNTER, ACCOUNT)})
    )
    assert made == [
        "flush table inet ocsf_nft",
        # The sets of allowed senders are created again, whatever the listing shows.
        "delete set inet ocsf_nft allowed4",
        "delete set inet ocsf_nft allowed6",
        "delete set inet ocsf_nft neighbours6",
        *(f"delete set inet ocsf_nft {name}" for name in _PINNED),
        "delete table netdev ocsf_nft",
    ]


def test_replacement_contains_the_whole_definition() -> None:
    text = replace_keeping_counters.replacement_text(
        DEFINITION, {INET: inet(FLOWS), NETDEV: netdev(EGRESS)}
    )
    assert text is not None
    made = iter(text.splitlines())
    expected = [line for line in DEFINITION.splitlines() if not line.startswith("delete table ")]
    assert all(line in made for line in expected)
    assert "delete table" not in text


def test_replacement_does_not_preserve_a_table_with_other_flags() -> None:
    """The flags differ: the kernel never accepts one kind of table for the other."""
    owned = ruleset.fence(
        replace(SPEC, is_owned=True), Surroundings(links=("eth0", "eth1")), "nflog"
    )
    persisting = inet(FLOWS, comment='\tflags persist\n\tcomment "fence of sandbox lab"\n')
    made = replace_keeping_counters.replacement_text(owned, {INET: persisting})
    assert "flush table inet ocsf_nft" in statements(made)
    assert made is not None
    opened = [line for line in made.splitlines() if line.startswith("table ")]
    flagged = made.count(f"{{\n\t{ruleset.EXCLUSIVE_FLAGS}\n") + made.count(
        f"{{ {ruleset.EXCLUSIVE_FLAGS} }}\n"
    )
    assert len(opened) == flagged
    assert replace_keeping_counters.replacement_text(owned, {INET: inet(FLOWS)}) is None
    assert replace_keeping_counters.replacement_text(DEFINITION, {INET: persisting}) is None


def test_replacement_deletes_foreign_parts_after_the_parts_that_refer_to_them() -> None:
    found = inet(
        "\tchain foreign { # handle 90\n\t}\n",
        "\tset theirs { # handle 91\n\t\ttype ipv4_addr\n\t}\n",
        "\tmap jumps { # handle 92\n\t\ttype ipv4_addr : verdict\n\t}\n",
        "\tcounter their-counter { # handle 93\n\t}\n",
    )
    made = statements(replace_keeping_counters.replacement_text(DEFINITION, {INET: found}))
    assert made[4 + len(_PINNED) : -1] == [
        "delete map inet ocsf_nft jumps",
        "delete set inet ocsf_nft theirs",
        "delete counter inet ocsf_nft their-counter",
        "delete chain inet ocsf_nft foreign",
    ]


def test_replacement_deletes_foreign_chains_by_name_next_to_preserved_ones() -> None:
    names = ["b", "z", "a", "y", "c", "x"]
    foreign = [f"\tchain {name} {{ # handle 9\n\t}}\n" for name in names]
    made = statements(
        replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: netdev(EGRESS, *foreign)})
    )
    deleted = [line.split()[4] for line in made if line.startswith("delete chain netdev")]
    assert deleted == sorted([*names, "egress"])


def test_replacement_creates_a_set_before_it_deletes_it() -> None:
    """The deletion of a set that is missing would fail, and the listing may hide it."""
    text = replace_keeping_counters.replacement_text(DEFINITION, {INET: inet(FLOWS)})
    assert text is not None
    for name in ("allowed4", "allowed6", "neighbours6"):
        deletion = text.index(f"delete set inet ocsf_nft {name}\n")
        assert 0 < text.index(f"\tset {name} {{\n") < deletion


def test_replacement_refuses_a_foreign_definition() -> None:
    listings = {INET: inet(FLOWS)}
    for definition in (DEFINITION + "\ndelete table inet ocsf_nft\n", "table inet ocsf_nft {\n}\n"):
        with pytest.raises(AssertionError, match="must delete"):
            replace_keeping_counters.replacement_text(definition, listings)
    with pytest.raises(AssertionError, match="must be readable"):
        replace_keeping_counters.replacement_text(
            "\ndelete table inet ocsf_nft\ntable inet ocsf_nft {\n\todd\n}\n", listings
        )


def test_base_chain_stays_on_existing_links_and_is_removed_from_deleted_ones() -> None:
    made = statements(
        replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: netdev(EGRESS)})
    )
    assert made[-1] == (
        "delete chain netdev ocsf_nft egress "
        '{ type filter hook egress devices = { "old0" } priority 2147483647; }'
    )
    one = EGRESS.replace("devices = { eth0, old0 }", 'device "eth0"')
    assert "chain" not in " ".join(
        statements(replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: netdev(one)}))
    )


def test_base_chain_stays_on_many_links() -> None:
    links = tuple(f"link{number}" for number in range(300))
    definition = ruleset.fence(SPEC, Surroundings(links=links), "nflog")
    listed = netdev(EGRESS.replace("eth0", ", ".join(links)))
    made = statements(replace_keeping_counters.replacement_text(definition, {NETDEV: listed}))
    assert [each for each in made if "hook" in each] == [made[-1]]
    assert '"old0"' in made[-1]


def test_base_chain_with_another_policy_is_preserved() -> None:
    found = EGRESS.replace("policy drop", "policy accept")
    assert statements(
        replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: netdev(found)})
    ) == statements(replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: netdev(EGRESS)}))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("hook egress", "hook ingress"),
        ("priority 2147483647", "priority -5"),
        ("devices = { eth0, old0 } ", ""),
        ("\t\ttype filter", '\t\tcomment "x"\n\t\ttype filter'),
        ("old0", 'a"b'),
    ],
)
def test_different_base_chain_is_created_again(ours: str, theirs: str) -> None:
    assert ours in EGRESS
    found = netdev(EGRESS.replace(ours, theirs))
    made = statements(replace_keeping_counters.replacement_text(DEFINITION, {NETDEV: found}))
    assert made[-1] == "delete chain netdev ocsf_nft egress"


TAP = ruleset.fence(
    FenceSpec(
        sandbox="vm",
        proxies=(endpoint("172.16.7.1:3128"),),
        tap=Tap(device="vmtap-0", subnets=(subnet("172.16.7.1/30"),)),
    ),
    Surroundings(links=("vmtap-0",), ifindex=7),
    "nflog",
)
_NAT = """table inet ocsf_nft_vmtap-0 { # handle 3
\tcomment "fence of sandbox vm"
\tchain postrouting { # handle 70
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmasquerade # handle 71
\t}
}
"""


@pytest.mark.parametrize(("kind", "is_preserved"), [("nat", True), ("filter", False)])
def test_nat_chain_is_preserved_and_another_type_is_not(kind: str, is_preserved: bool) -> None:
    table_id = TableId("inet", "ocsf_nft_vmtap-0")
    made = statements(
        replace_keeping_counters.replacement_text(
            TAP, {table_id: _NAT.replace("type nat", f"type {kind}")}
        )
    )
    assert ("delete chain inet ocsf_nft_vmtap-0 postrouting" in made) != is_preserved


def test_link_address_of_a_vm_is_learned_again() -> None:
    table_id = TableId("netdev", "ocsf_nft_vmtap-0")
    macs = (
        "table netdev ocsf_nft_vmtap-0 { # handle 4\n"
        '\tcomment "fence of sandbox vm"\n'
        "\tset macs { # handle 5\n"
        "\t\ttypeof ether saddr\n\t\tsize 1\n\t\tflags dynamic\n\t}\n}\n"
    )
    made = statements(replace_keeping_counters.replacement_text(TAP, {table_id: macs}))
    assert "delete set netdev ocsf_nft_vmtap-0 macs" in made


@pytest.mark.parametrize(
    "listing",
    [
        inet(FLOWS.replace("32768", "16")),
        inet(FLOWS.replace("\t\tcounter\n", "")),
        inet(FLOWS.replace("\t\tcounter\n", '\t\tcomment "x"\n\t\tcounter\n')),
        inet(COUNTER.replace("\n\t}", '\n\t\tcomment "x"\n\t}')),
        inet(FLOWS, FLOWS),
        inet(FLOWS, "\tflags other\n"),
        inet(COUNTER.replace("\t}", "\tpackets 5\n\t}")),
        inet(FLOWS, comment='\tcomment "fence of sandbox other"\n'),
        inet(FLOWS, comment=""),
        inet("\tflowtable f { # handle 9\n\t\thook ingress priority filter\n\t}\n"),
        inet("\tct helper h { # handle 9\n\t}\n"),
        inet("\tsynproxy s { # handle 9\n\t}\n"),
        inet("\tchain a;flush { # handle 9\n\t}\n"),
        inet("\tchain a b { # handle 9\n\t}\n"),
        inet("\tchain $(x) { # handle 9\n\t}\n"),
        inet(FLOWS)[:-2],
        inet(FLOWS) + inet(FLOWS),
        inet(FLOWS).replace("inet", "ip"),
        "",
    ],
)
def test_unexpected_listing_is_not_preserved(listing: str) -> None:
    assert replace_keeping_counters.replacement_text(DEFINITION, {INET: listing}) is None


def test_guard_is_preserved_too() -> None:
    table_id = TableId("netdev", device_table("veth7"))
    definition = ruleset.guard(SPEC, Surroundings(), "nflog")
    found = (
        "table netdev ocsf_nft_veth7 { # handle 1\n"
        '\tcomment "guard of sandbox lab"\n'
        "\tchain ingress { # handle 2\n"
        '\t\ttype filter hook ingress device "veth7" priority -500; policy drop;\n'
        "\t}\n}\n"
    )
    made = statements(replace_keeping_counters.replacement_text(definition, {table_id: found}))
    assert made[0] == "flush table netdev ocsf_nft_veth7"
    assert not [line for line in made if "chain" in line or "table netdev" in line][1:]


_OURS = re.compile(
    r"flush table (?:inet|netdev) ocsf_nft"
    r"|delete table (?:inet|netdev) ocsf_nft"
    r"|delete (?:map|set|counter|quota|limit|chain) (?:inet|netdev) ocsf_nft [A-Za-z_.][\w.-]*"
    r'(?: \{ type filter hook \w+ devices = \{ "[^"\s]{1,15}" \} priority [a-z0-9-]+; \})?',
    re.ASCII,
)
_PIECES = st.sampled_from(
    [FLOWS, COUNTER, ACCOUNT, EGRESS, "\tchain ", "\tset ", " { # handle 7\n", "\t}\n", "}\n", "\n",
     "\t\ttype filter hook egress devices = { ", " } priority filter; policy drop;\n", "; ", '"',
     "\t", "delete table inet ocsf_nft\n", "flags dormant"]
)  # fmt: skip
_HOSTILE = st.lists(st.one_of(_PIECES, st.text(max_size=8)), max_size=12).map("".join)
_DEFINED = frozenset(DEFINITION.splitlines())


@given(st.tuples(_HOSTILE, _HOSTILE))
def test_no_listing_adds_its_own_statements_to_the_ruleset(parts: tuple[str, str]) -> None:
    text = replace_keeping_counters.replacement_text(
        DEFINITION, {INET: inet(parts[0]), NETDEV: netdev(parts[1])}
    )
    if text is not None:
        added = [line for line in text.split("\n") if line not in _DEFINED]
        assert [line for line in added if not _OURS.fullmatch(line)] == []


@given(st.text(max_size=12))
def test_only_identifiers_are_accepted_as_names(name: str) -> None:
    text = replace_keeping_counters.replacement_text(
        DEFINITION, {INET: inet(f"\tchain {name} {{ # handle 9\n\t}}\n")}
    )
    is_plain = re.fullmatch(r"[A-Za-z_.][A-Za-z0-9_.-]*", name) is not None
    assert (text is not None) == is_plain
