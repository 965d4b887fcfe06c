"""Variants of the attack matrix, their expected outcomes and the page about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.kernel.ways import expected, page
from tests.kernel.ways.inherent import INHERENT, RACING_FAMILY
from tests.kernel.ways.variant import FENCED
from tests.kernel.ways.variants import VARIANTS

_PAGE: Final = Path(__file__).parents[2] / "docs/explanation/ways-round.md"
_AT_LEAST: Final = 30


def test_each_attacker_has_enough_variants() -> None:
    counts = Counter(
        "admin" if each.attacker == "cap-add" else each.attacker for each in VARIANTS.values()
    )
    assert set(counts) == {"unprivileged", "raw", "admin"}
    assert min(counts.values()) > _AT_LEAST


def test_table_has_each_variant_in_each_form() -> None:
    assert set(expected.read()) == {(key, form) for key in VARIANTS for form in FENCED}


def test_page_lists_exactly_the_variants() -> None:
    assert _PAGE.read_text(encoding="utf-8") == page.page(expected.read())


@pytest.mark.parametrize("key", INHERENT)
def test_inherent_way_is_a_variant_that_the_policy_allows(key: str) -> None:
    assert any(expected.read()[key, form] == "allowed" for form in FENCED)


def test_each_way_that_the_policy_allows_has_a_reason() -> None:
    """A VM may reach the internet (profile tap), so its column has no reasons."""
    allowed = {
        key for (key, form), verdict in expected.read().items()
        if verdict == "allowed" and form != "tap" and VARIANTS[key].family != RACING_FAMILY
    }  # fmt: skip
    assert allowed == set(INHERENT)


def test_variant_has_a_sentence() -> None:
    odd = [key for key, each in VARIANTS.items() if not each.summary.endswith(".")]
    assert not odd
