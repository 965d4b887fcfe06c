"""Error messages for nft's answers about a ruleset."""

from __future__ import annotations

import pytest

from ocsf_nft.fence import nft


@pytest.mark.parametrize(
    ("number", "rule"), [(0, ""), (1, "flush ruleset"), (2, "table inet t"), (3, "")]
)
def test_refused_line_is_shown_where_the_ruleset_has_it(number: int, rule: str) -> None:
    stderr = f"/proc/self/fd/3:{number}:5-9: Error: syntax error\n{rule}\n"
    error = nft._explain(stderr, "flush ruleset\n\ttable inet t\n")
    assert str(error) == f"the kernel refused line {number} of the ruleset, `{rule}`: syntax error"


def test_refused_line_names_the_missing_module() -> None:
    stderr = "/proc/self/fd/3:1:5-9: Error: Could not process rule: Operation not supported"
    error = nft._explain(stderr, "ip saddr 192.0.2.1 masquerade")
    assert str(error) == (
        "this kernel can't do `ip saddr 192.0.2.1 masquerade` (Could not process rule: Operation "
        "not supported): it needs nft_masq with nf_nat"
    )
