"""Check of the judge with invalid events, each made by one change of a valid event."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.validation import EventValidator
from tests.conformance.spoiling import GOOD, LATER, spoils, spoilt

if TYPE_CHECKING:
    from collections.abc import Callable

    Judges = Callable[..., list[str]]


@pytest.mark.parametrize(("uid", "version"), GOOD)
def test_judge_accepts_sample_event(judge: Judges, uid: int, version: str) -> None:
    assert judge(GOOD[uid, version], version) == []
    assert EventValidator().faults(GOOD[uid, version]) == []


@pytest.mark.parametrize(("uid", "version"), GOOD)
def test_judge_reports_each_fault_at_its_path(uid: int, version: str) -> None:
    judge = EventValidator(version)
    missed = {}
    for name, spoil in spoils(uid, version).items():
        found = judge.faults(spoilt(GOOD[uid, version], spoil))
        path = spoil.at or spoil.path
        if {fault.severity for fault in found if fault.path == path} != {spoil.severity}:
            missed[name] = found
    assert missed == {}
    assert len(spoils(uid, version)) > 50


@pytest.mark.parametrize("uid", LATER)
def test_judge_knows_later_attributes_in_later_version(uid: int) -> None:
    rejected = {}
    for name, spoil in LATER[uid].items():
        then, now = (
            {
                str(fault)
                for fault in EventValidator(version).faults(spoilt(GOOD[uid, version], spoil))
            }
            for version in ("1.1.0", "1.8.0")
        )
        unknown = {fault for fault in then if "is no attribute of" in fault}
        if both := {fault.replace("1.1.0", "1.8.0") for fault in unknown} & now:
            rejected[name] = both
    assert rejected == {}


@pytest.mark.parametrize(
    "at", ["observables[0].type_id", "observables[].type_id", "observables.type_id"]
)
def test_judge_accepts_observable_that_points_into_array(judge: Judges, at: str) -> None:
    event = deepcopy(GOOD[4001, "1.8.0"])
    event["observables"].append({"name": at, "type_id": 99, "type": "id", "value": "2"})
    assert judge(event) == []
