"""Errors about a fence that another process changes during the installation."""

from __future__ import annotations

import pytest

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import listing, load_ruleset, table_query
from ocsf_nft.nfnetlink import Generation
from tests.standing import INSTALLED


def test_difference_to_the_loaded_fence_is_named_by_its_first_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, found = (
        {"inet ocsf_nft": f"table inet ocsf_nft {{\n\tchain c {{\n{rules}\t}}\n}}\n"}
        for rules in ("\t\tone\n\t\ttwo\n", "\t\tother\n\t\tthree\n")
    )
    # Another process has made a transaction.
    generations = iter((Generation(1, 7), Generation(1, 9)))
    monkeypatch.setattr(table_query, "generation", lambda _: next(generations))
    monkeypatch.setattr(load_ruleset, "_load_all", lambda *_: {})
    monkeypatch.setattr(load_ruleset, "_expected", lambda *_: expected)
    monkeypatch.setattr(listing, "of_fence", lambda *_: found)
    with pytest.raises(FenceError) as raised:
        load_ruleset._load_and_compare(INSTALLED, None, lambda *_: None)
    assert str(raised.value).endswith(
        "was altered while it was installed:  \tchain c { -\t\tone -\t\ttwo"
    )
