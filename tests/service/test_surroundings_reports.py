"""Texts about changes of a fence's surroundings."""

from __future__ import annotations

import pytest

from ocsf_nft.fence.surroundings.changes import SurroundingChange
from ocsf_nft.fence.surroundings.news import SurroundingsNews
from ocsf_nft.service import surroundings_reports

_QDISC = SurroundingChange("qdisc", (1,), "a tc qdisc clsact was added on lo")
_SYSCTL = SurroundingChange("sysctl", (2,), "route_localnet was set from 0 to 1")
_READ_ONLY = "Read-only file system"


@pytest.mark.parametrize(
    ("undone", "failures", "text"),
    [
        ((_QDISC, _SYSCTL), (), "undone 2.0 ms later"),
        ((_QDISC,), (), "1 change undone 2.0 ms later, 1 not undone"),
        ((_QDISC,), (_READ_ONLY,), f"1 change undone 2.0 ms later, 1 not undone: {_READ_ONLY}"),
        ((), (), "not undone"),
        ((), (_READ_ONLY,), f"not undone: {_READ_ONLY}"),
        (
            (),
            (_READ_ONLY, "Operation not permitted"),
            f"not undone: {_READ_ONLY}, Operation not permitted",
        ),
    ],
)
def test_outcome_has_the_reasons_of_failed_undos(
    undone: tuple[SurroundingChange, ...], failures: tuple[str, ...], text: str
) -> None:
    news = SurroundingsNews(
        added=(_QDISC, _SYSCTL),
        undone=undone,
        failures=failures,
        present=(),
        arrived_ns=0,
        undone_after_ns=2_000_000 if undone else None,
    )
    assert surroundings_reports._outcome(news) == text
