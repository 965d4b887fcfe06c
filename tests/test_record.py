"""Parsing of log prefixes: rule, sandbox and verdict, and their uniqueness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.record import Prefix, own_prefix, split_prefix
from tests.strategies import HOSTILE_TEXT, NAMES


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ocsf-nft:sb:egress:", Prefix("sb", "egress")),
        ("ocsf-nft:sb:egress:permissive:", Prefix("sb", "egress", "permit")),
        ("ocsf-nft:permissive:permissive:", Prefix("permissive", "permissive")),
        (
            "ocsf-nft:permissive:permissive:permissive:",
            Prefix("permissive", "permissive", "permit"),
        ),
    ],
)
def test_own_prefix_has_sandbox_rule_and_verdict(prefix: str, expected: Prefix) -> None:
    assert split_prefix(prefix) == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "ocsf-nft:sb:egress",
        "ocsf-nft:sb:egress:permissive",
        "ocsf-nft:sb:egress: permissive:",
        "ocsf-nft:sb:egress:Permissive:",
        "ocsf-nft:sb:egress:permissive::",
        "ocsf-nft:sb:egress::",
        "ocsf-nft:sb::permissive:",
        "ocsf-nft::egress:permissive:",
        "ocsf-nft:sb:egress:enforcing:",
        "ocsf-nft:sb:egress:permissive:permissive:",
        "OCSF-NFT:sb:egress:permissive:",
        "x ocsf-nft:sb:egress:permissive:",
    ],
)
def test_prefix_similar_to_ours_is_foreign(prefix: str) -> None:
    assert split_prefix(prefix) == Prefix(None, prefix.strip())


@given(sandbox=NAMES, rule=NAMES, is_permissive=st.booleans())
def test_prefix_is_split_into_the_parts_that_it_was_made_of(
    sandbox: str, rule: str, is_permissive: bool
) -> None:
    expected = Prefix(sandbox, rule, "permit" if is_permissive else None)
    assert split_prefix(own_prefix(sandbox, rule, is_permissive=is_permissive)) == expected


@given(HOSTILE_TEXT)
def test_each_parsed_prefix_is_unique(prefix: str) -> None:
    found = split_prefix(prefix)
    if found.sandbox is not None:
        is_permissive = found.verdict == "permit"
        assert own_prefix(found.sandbox, found.rule, is_permissive=is_permissive) == prefix
