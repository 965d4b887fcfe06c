from __future__ import annotations

from ocsf_nft.fence.rule_lookup import LoggingRule, logging_rules

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
            text='log prefix "ocsf-nft:sb1:egress:" group 4001 snaplen 128',
        ),
        LoggingRule(
            name="link",
            family="netdev",
            table="ocsf_nft",
            chain="refuse_link",
            handle=28,
            text='log prefix "ocsf-nft:sb1:link:" group 4001 snaplen 128',
        ),
    )


def test_rule_of_a_permissive_fence_has_the_same_name() -> None:
    (rule,) = logging_rules([LISTING.replace(":egress:", ":egress:permissive:")])
    assert (rule.name, rule.handle) == ("egress", 28)
    assert logging_rules([LISTING.replace(":egress:", ":egress:other:")]) == ()
