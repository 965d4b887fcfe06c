"""Filter of stored events."""

from __future__ import annotations

import orjson
import pytest

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.event_filter import event_filter


def test_severity_filter_selects_that_severity_and_above() -> None:
    names = ("informational", "low", "medium", "high", "Critical")
    for least, name in enumerate(names, 1):
        is_selected = event_filter({"severity": name}, [])
        found = [
            number for number in range(7) if is_selected(orjson.dumps({"severity_id": number}))
        ]
        assert found == [*range(least, 7)], name


@pytest.mark.parametrize(
    ("given", "classes", "error"),
    [
        ({"severity": "x"}, [], '--severity "x" is unknown: give one of critical'),
        ({"since": "x"}, [], '--since "x"'),
        ({"until": "x"}, [], '--until "x"'),
        ({}, ["4001", "x"], '--class "x" is not known: give one of'),
    ],
)
def test_wrong_condition_is_an_error_with_its_name(
    given: dict[str, str], classes: list[str], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        event_filter(given, classes, prefix="--")
