"""What the real kernel said becomes valid events, by text and by netlink."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft import netlink
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.record import Record
from ocsf_nft.sources import nflog_message
from ocsf_nft.sources.replay import Reader
from tests.conformance.corpus import CONTEXT, NOW_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CORPUS = Path(__file__).parents[1] / "corpus" / "kernel_records.jsonl"


def _by_text(case: dict[str, Any]) -> Iterator[Record]:
    lines = "\n".join(case["kmsg"]).encode()
    for batch in Reader().batches([lines]):
        assert not batch.rejects
        yield from batch.records


def _by_netlink(case: dict[str, Any]) -> Iterator[Record]:
    for message in case["nflog_hex"]:
        ((_kind, payload),) = netlink.messages(memoryview(bytes.fromhex(message)))
        read = nflog_message.read(
            payload,
            group=5,
            interface_name=lambda index: f"if{index}",
            identity=lambda sequence: f"corpus:{case['name']}:{sequence}",
            received_ns=NOW_NS,
            log_source="corpus",
        )
        assert isinstance(read, Record)
        yield read


@pytest.mark.parametrize("mapper", [Mapper(CONTEXT), Mapper(Context())], ids=["here", "elsewhere"])
@pytest.mark.parametrize("way", [_by_text, _by_netlink])
def test_every_real_record_is_an_event_without_fault(
    judge: Callable[[Any], list[str]],
    way: Callable[[dict[str, Any]], Iterator[Record]],
    mapper: Mapper,
) -> None:
    faults: dict[str, list[str]] = {}
    number = 0
    for case in map(orjson.loads, _CORPUS.read_bytes().splitlines()):
        for record in way(case):
            number += 1
            event = mapper.network_activity(record, processed_ns=NOW_NS)
            if found := judge(orjson.loads(event.to_json())):
                faults[case["name"]] = found
    assert not faults
    assert number > 70
