"""The events of a dozen situations are what a person has read and found to say what happened."""

from __future__ import annotations

import pytest

from tests.golden.situations import FOLDER, situations, text

SITUATIONS = situations()


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_is_told_as_it_was_read(name: str) -> None:
    assert text(SITUATIONS[name]) == (FOLDER / f"{name}.json").read_text()


def test_no_file_is_of_a_situation_that_is_no_more() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == SITUATIONS.keys()
