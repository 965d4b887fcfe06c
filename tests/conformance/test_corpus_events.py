"""What the real kernel said becomes valid events, by text and by netlink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.corpus import CONTEXT, NOW_NS
from tests.sources import corpus_cases

if TYPE_CHECKING:
    from collections.abc import Callable

_RECORDS = [
    *(corpus_cases.record(message) for message in corpus_cases.MESSAGES),
    *(corpus_cases.nflog(payload) for case in corpus_cases.cases() for payload in case.payloads),
]


@pytest.mark.parametrize("mapper", [Mapper(CONTEXT), Mapper(Context())], ids=["here", "elsewhere"])
def test_every_real_record_is_an_event_without_fault(
    judge: Callable[[Any], list[str]], mapper: Mapper
) -> None:
    faults: dict[str, list[str]] = {}
    for record in _RECORDS:
        event = mapper.network_activity(Attempt.of(record), processed_ns=NOW_NS)
        if found := judge(orjson.loads(event.to_json())):
            faults[record.origin.raw] = found
    assert not faults
    assert len(_RECORDS) > 140
