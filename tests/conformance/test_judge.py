"""The judge catches what is wrong: an event, one thing spoilt, must not pass."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.validation import Judge
from tests.conformance.spoiling import GOOD, LATER, cases, spoilt

if TYPE_CHECKING:
    from collections.abc import Callable

    Judges = Callable[..., list[str]]

CASES = cases()


@pytest.mark.parametrize(("uid", "version"), GOOD)
def test_the_events_that_are_spoilt_below_have_no_fault(
    judge: Judges, uid: int, version: str
) -> None:
    assert judge(GOOD[uid, version], version) == []
    assert Judge().faults(GOOD[uid, version]) == []


@pytest.mark.parametrize("case", CASES)
def test_a_spoilt_event_is_caught_where_it_is_spoilt(case: str) -> None:
    uid, version, spoil = CASES[case]
    found = Judge(version).faults(spoilt(GOOD[uid, version], spoil))
    path = spoil.at or spoil.path
    assert {fault.severity for fault in found if fault.path == path} == {spoil.severity}, found


@pytest.mark.parametrize("uid", LATER)
def test_what_1_1_does_not_have_is_an_attribute_of_a_later_version(uid: int) -> None:
    for name, spoil in LATER[uid].items():
        then, now = (
            {str(fault) for fault in Judge(version).faults(spoilt(GOOD[uid, version], spoil))}
            for version in ("1.1.0", "1.8.0")
        )
        unknown = {told for told in then if "is no attribute of" in told}
        assert not {told.replace("1.1.0", "1.8.0") for told in unknown} & now, name


@pytest.mark.parametrize(
    "at", ["observables[0].type_id", "observables[].type_id", "observables.type_id"]
)
def test_an_observable_may_point_into_an_array(judge: Judges, at: str) -> None:
    event = deepcopy(GOOD[4001, "1.8.0"])
    event["observables"].append({"name": at, "type_id": 99, "type": "id", "value": "2"})
    assert judge(event) == []
