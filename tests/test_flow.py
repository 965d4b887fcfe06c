from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from ocsf_nft.flow import KINDS, Flow, Key, coarser, flow, keys
from tests.strategies import records

if TYPE_CHECKING:
    from ocsf_nft.record import Record

PORTS = {6, 17, 33, 132, 136}
NOBODY = 0xFFFF_FFFF


@given(record=records())
def test_a_record_leads_to_an_element_that_says_the_same(record: Record) -> None:
    exact, *_ = keys(record)
    found = flow(exact)
    assert found.uid == (None if record.uid == NOBODY else record.uid)
    if record.destination is None or record.protocol is None:
        assert exact.kind == "others"
        assert (found.destination, found.port) == (None, None)
        assert found.protocol == (record.protocol or None)
    else:
        assert exact.kind == ("flows6" if ":" in record.destination else "flows4")
        assert ip_address(str(found.destination)) == ip_address(record.destination)
        assert found.protocol == record.protocol
        is_fragment = record.details.keys() & {"fragment_offset", "more_fragments"}
        if record.protocol in PORTS and not is_fragment:
            assert found.port == (record.destination_port or 0)
        else:
            assert not found.port


@given(record=records())
def test_where_it_finds_no_place_it_is_counted_with_less_and_less_said(record: Record) -> None:
    exact, *rest = path = keys(record)
    assert tuple(rest) == coarser(exact)
    assert len(set(path)) == len(path)
    said = [_said(flow(each)) for each in path]
    assert said == sorted(said, reverse=True)
    assert {flow(each).uid for each in path} == {flow(exact).uid}
    for number, each in enumerate(path):
        assert coarser(each) == path[number + 1 :]
    assert path[-1].kind == "others"
    assert not flow(path[-1]).protocol


def _said(found: Flow) -> int:
    return sum((bool(found.port), found.destination is not None, bool(found.protocol)))


@given(record=records())
def test_what_no_socket_sent_is_counted_as_nobodys(record: Record) -> None:
    assert keys(replace(record, uid=None)) == keys(replace(record, uid=NOBODY))
    assert flow(keys(replace(record, uid=None))[0]).uid is None


@given(record=records())
def test_two_records_of_one_flow_lead_to_one_element(record: Record) -> None:
    other = replace(
        record, source=None, source_port=None, in_interface="other", length=1, gid=5, time_ns=1
    )
    assert keys(other) == keys(record)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0" * 64])
def test_a_key_of_the_wrong_length_says_nothing(kind: str, data: bytes) -> None:
    with pytest.raises(struct.error):
        flow(Key(kind, data))  # type: ignore[arg-type]
