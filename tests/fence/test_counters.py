"""Limits of reading a fence's counters, without a kernel."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import counters
from ocsf_nft.fence.counters import Counters
from ocsf_nft.nfnetlink import InterruptedDumpError
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from ocsf_nft.fence.counter_elements import ElementParser


def test_counters_are_read_until_one_deadline_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadlines: set[float] = set()
    monkeypatch.setattr(Counters, "_read", lambda *asked: deadlines.add(asked[-1]))
    monkeypatch.setattr(Counters, "_generation", lambda *asked: deadlines.add(asked[-1]))
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    Counters(INSTALLED).read()
    assert deadlines == {110.0}


def test_counters_that_are_replaced_in_each_of_three_readings_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = 0

    def read(_: Any) -> NoReturn:
        nonlocal readings
        readings += 1
        raise counters._ReplacedError

    monkeypatch.setattr(counters._Rule, "read", read)
    monkeypatch.setattr(Counters, "_open", lambda *_: SimpleNamespace(generation=lambda: 1))
    with pytest.raises(FenceError, match="are replaced again and again"):
        Counters(INSTALLED).read()
    assert readings == 3


def test_set_that_changes_in_each_of_three_readings_is_returned_as_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def collect(_: Any, _kind: str, elements: ElementParser, _found: Any) -> NoReturn:
        seen.append(elements.seen)
        elements.seen += 9
        raise InterruptedDumpError

    monkeypatch.setattr(counters._Rule, "_collect", collect)
    rule = counters._Rule(SimpleNamespace(), "inet", "ocsf_nft", "egress")  # type: ignore[arg-type]
    assert rule._elements("flows4", 1) == ()
    assert seen == [0, 0, 0]  # the limit is of each reading
