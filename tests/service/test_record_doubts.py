"""Doubts about the log records of a sandbox, after some of them were forged."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.enums import Confidence
from ocsf_nft.process import Attribution, ConfidenceLevel, Method, Process, Seen
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.record_doubts import RecordDoubts
from tests.conformance.corpus import NOW_NS, RECORDS
from tests.ocsf.mapped import MAPPER

_BY = Attribution(
    method="socket", confidence="medium", reason="it has the socket", process=Process(pid=7)
)


async def _store(_change: object) -> None:
    raise AssertionError("nothing is to be stored")


def _doubts(until_ns: int) -> RecordDoubts:
    doubts = RecordDoubts("sb1", Reporter(_store, host=None))
    doubts.until_ns = until_ns
    return doubts


@pytest.mark.parametrize("method", ["socket", "user", "capture"])
@pytest.mark.parametrize("confidence", ["high", "medium", "low", None])
def test_attribution_is_weakened_while_records_are_doubted(
    method: Method, confidence: ConfidenceLevel | None
) -> None:
    known = replace(_BY, method=method, confidence=confidence)
    assert _doubts(0).weakened(known) == known
    weakened = _doubts(time.monotonic_ns() + 10**12).weakened(known)
    if (method, confidence) == ("capture", "high"):
        assert weakened == known
        return
    assert (weakened.confidence, weakened.process) == ("low", None)
    assert weakened.seen == (Seen(process=Process(pid=7)),)
    assert weakened.is_doubted


@pytest.mark.parametrize(
    ("is_doubted", "expected"), [(True, Confidence.LOW), (False, Confidence.HIGH)]
)
def test_event_of_a_doubted_record_has_a_low_confidence(
    is_doubted: bool, expected: Confidence
) -> None:
    attempt = Attempt.of(RECORDS["tcp4"], replace(_BY, is_doubted=is_doubted))
    event = MAPPER.network_activity(attempt, processed_ns=NOW_NS)
    assert event.confidence_id == expected
