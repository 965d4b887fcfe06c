"""Attack matrix: variants against each form of a fence; see tests/kernel/ways.

Here a sample of the variants runs, because all of them take minutes: `make ways` runs them all.

The outcomes are those of ``tests/kernel/ways/expected.json``. A better outcome fails a test too:
``python -m tests.kernel.ways docs/explanation/ways-round.md`` writes the file and the page again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.ways import expected, matrix
from tests.kernel.ways.variant import FENCED, FORMS
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kernel.ways.matrix import Outcome
    from tests.kernel.ways.variant import Form

#: Each seventh variant, of every attacker and family.
_SAMPLE = sorted(VARIANTS)[::7]

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, Form], Outcome]:
    pairs = [(key, form) for form in FORMS for key in _SAMPLE]
    return matrix.run(tmp_path_factory.mktemp("ways"), pairs, expected.loud())


@pytest.mark.parametrize("key", _SAMPLE)
def test_attack_has_its_outcome(outcomes: Mapping[tuple[str, Form], Outcome], key: str) -> None:
    # Without a fence it works; otherwise it would prove nothing.
    assert outcomes[key, "open"].verdict == "works", outcomes[key, "open"]
    known = expected.read()
    found = {form: outcomes[key, form] for form in FENCED}
    odd = {
        form: (outcome, f"not {known[key, form]}")
        for form, outcome in found.items()
        if not expected.agrees(key, outcome.verdict, known[key, form])
    }
    assert not odd
