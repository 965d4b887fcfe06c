"""Comparison of the events of each situation with the reviewed files."""

from __future__ import annotations

import pytest

from tests.golden.situations import FOLDER, situations, text

SITUATIONS = situations()


@pytest.mark.parametrize("name", SITUATIONS)
def test_event_of_situation_equals_reviewed_file(name: str) -> None:
    assert text(SITUATIONS[name]) == (FOLDER / f"{name}.json").read_text()


def test_each_golden_file_has_a_situation() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == SITUATIONS.keys()
