from __future__ import annotations

from ocsf_nft.fence.listing import (
    LoggingRule,
    difference,
    logging_rules,
    shortened,
    with_devices,
)

LISTING = """table inet ocsf_nft { # handle 3
\tcomment "fence of sandbox sb1"
\tchain output { # handle 1
\t\ttype filter hook output priority filter; policy drop;
\t\tgoto refuse_egress # handle 23
\t}

\tchain refuse_egress { # handle 3
\t\tcounter name "refused_egress" # handle 27
\t\tlog prefix "ocsf-nft:sb1:egress:" group 4001 snaplen 128 # handle 28
\t\tlog prefix "another:tool:" # handle 29
\t}
}
"""
ONE = "\tset a { # handle 1\n\t\ttype ipv4_addr\n\t}\n"
OTHER = "\tchain b { # handle 2\n\t\taccept # handle 3\n\t}\n"


def listing(*parts: str) -> dict[str, str]:
    return {"inet t": "table inet t { # handle 1\n" + "\n".join(parts) + "}\n"}


def test_order_of_parts_and_their_handles_make_no_difference() -> None:
    again = listing(OTHER.replace("handle 2", "handle 77"), ONE)
    assert difference(listing(ONE, OTHER), again) == []


def test_new_rule_and_new_element_make_a_difference() -> None:
    found = listing(ONE, OTHER.replace("\t}", "\t\tdrop # handle 4\n\t}"))
    assert "+\t\tdrop" in difference(listing(ONE, OTHER), found)
    with_element = {"inet t": listing(ONE)["inet t"] + "a: 10.0.0.1\n"}
    assert "+a: 10.0.0.1" in difference(listing(ONE), with_element)


def test_listing_has_only_the_named_devices_of_a_chain() -> None:
    chain = "\tchain egress {\n\t\ttype filter hook egress %s priority 5; policy drop;\n\t}\n"
    forms = (
        'device "a,b"',
        'device "eth0"',
        "devices = { a,b, eth0 }",
        'devices = { "eth0", "late0" }',
        "devices = { new }",
    )
    found = [with_devices({"t": chain % form}, {"eth0", "a,b"})["t"] for form in forms]
    kept = ("a,b", "eth0", "a,b, eth0", "eth0", "")
    assert found == [chain % f"devices = {{ {each} }}" for each in kept]


def test_order_of_rules_makes_a_difference() -> None:
    rules = "\tchain b {\n\t\taccept # handle 3\n\t\tdrop # handle 4\n\t}\n"
    swapped = "\tchain b {\n\t\tdrop # handle 3\n\t\taccept # handle 4\n\t}\n"
    assert difference(listing(rules), listing(swapped))


def test_shortened_cuts_long_lines_and_counts_the_lines_left_out() -> None:
    assert shortened(["x" * 200, "y" * 201]) == ["x" * 200, "y" * 199 + "…"]
    lines = [str(number) for number in range(22)]
    assert shortened(lines[:20]) == lines[:20]
    assert shortened(lines[:21]) == [*lines[:20], "… and 1 more line"]
    assert shortened(lines) == [*lines[:20], "… and 2 more lines"]


def test_difference_names_both_sides_and_shows_one_line_around() -> None:
    rules = [f"\t\t{number} accept\n" for number in range(5)]
    chain, changed = ("".join(["\tchain b {\n", *each, "\t}\n"]) for each in (rules, rules[:-1]))
    assert difference(listing(chain), listing(changed)) == [
        "--- inet t, as installed",
        "+++ inet t, now",
        "@@ -6,3 +6,2 @@",
        " \t\t3 accept",
        "-\t\t4 accept",
        " \t}",
    ]


def test_logging_rule_is_found_with_its_position() -> None:
    assert logging_rules(
        [LISTING, LISTING.replace("inet", "netdev").replace("egress", "link")]
    ) == (
        LoggingRule(
            name="egress",
            family="inet",
            table="ocsf_nft",
            chain="refuse_egress",
            handle=28,
        ),
        LoggingRule(
            name="link",
            family="netdev",
            table="ocsf_nft",
            chain="refuse_link",
            handle=28,
        ),
    )


def test_rule_of_a_permissive_fence_has_the_same_name() -> None:
    (rule,) = logging_rules([LISTING.replace(":egress:", ":egress:permissive:")])
    assert (rule.name, rule.handle) == ("egress", 28)
    assert logging_rules([LISTING.replace(":egress:", ":egress:other:")]) == ()


def test_further_log_statement_for_dns_is_no_rule_of_its_own() -> None:
    of_dns = LISTING.replace("chain ", "chain log_dns_")
    assert logging_rules([LISTING, of_dns]) == logging_rules([LISTING])
    assert logging_rules([of_dns]) == ()
