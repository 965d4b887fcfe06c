from __future__ import annotations

from ocsf_nft.fence.rule_lookup import RuleFact, logging_rules

LISTING = """table inet ocsf_nft { # handle 3
\tcomment "fence of sandbox sb1"
\tchain output { # handle 1
\t\ttype filter hook output priority filter; policy drop;
\t\tgoto refuse_egress # handle 23
\t}

\tchain refuse_egress { # handle 3
\t\tcounter name "refused_egress" # handle 27
\t\tlog prefix "ocsf-nft:sb1:egress:" group 4001 snaplen 128 # handle 28
\t\tlog prefix "somebody:else:" # handle 29
\t}
}
"""


def test_a_logging_rule_is_found_where_it_stands() -> None:
    assert logging_rules(
        [LISTING, LISTING.replace("inet", "netdev").replace("egress", "link")]
    ) == (
        RuleFact(
            name="egress",
            family="inet",
            table="ocsf_nft",
            chain="refuse_egress",
            handle=28,
            text='log prefix "ocsf-nft:sb1:egress:" group 4001 snaplen 128',
        ),
        RuleFact(
            name="link",
            family="netdev",
            table="ocsf_nft",
            chain="refuse_link",
            handle=28,
            text='log prefix "ocsf-nft:sb1:link:" group 4001 snaplen 128',
        ),
    )


def test_a_rule_of_a_permissive_fence_is_found_by_the_same_name() -> None:
    (fact,) = logging_rules([LISTING.replace(":egress:", ":egress:permissive:")])
    assert (fact.name, fact.handle) == ("egress", 28)
    assert logging_rules([LISTING.replace(":egress:", ":egress:other:")]) == ()
