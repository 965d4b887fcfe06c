"""What a log prefix says of its rule, and that no other says it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.record import Prefix, own_prefix, split_prefix
from tests.strategies import HOSTILE_TEXT, NAMES


@pytest.mark.parametrize(
    ("prefix", "said"),
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
def test_our_own_prefix_says_its_sandbox_its_rule_and_whether_it_refuses(
    prefix: str, said: Prefix
) -> None:
    assert split_prefix(prefix) == said


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
def test_what_is_almost_ours_is_a_foreign_prefix(prefix: str) -> None:
    assert split_prefix(prefix) == Prefix(None, prefix.strip())


@given(sandbox=NAMES, rule=NAMES, is_permissive=st.booleans())
def test_what_a_prefix_is_made_of_it_says(sandbox: str, rule: str, is_permissive: bool) -> None:
    said = Prefix(sandbox, rule, "permit" if is_permissive else None)
    assert split_prefix(own_prefix(sandbox, rule, is_permissive=is_permissive)) == said


@given(HOSTILE_TEXT)
def test_a_prefix_that_says_something_is_just_that_one(prefix: str) -> None:
    said = split_prefix(prefix)
    if said.sandbox is not None:
        is_permissive = said.verdict == "permit"
        assert own_prefix(said.sandbox, said.rule, is_permissive=is_permissive) == prefix
