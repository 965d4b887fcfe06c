from __future__ import annotations

import struct
import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from ocsf_nft.flow import (
    KINDS,
    Count,
    Element,
    Flow,
    Key,
    RuleReading,
    fallback_keys,
    flow,
    lacks_port,
    map_uids,
    user_of,
    without_port,
)
from tests.conformance.corpus import V4, V6, record
from tests.flows.kernel_model import keys
from tests.strategies import records

if TYPE_CHECKING:
    from ocsf_nft.flow import Kind
    from ocsf_nft.record import Record

PORTS = {6, 17, 33, 132, 136}
INVALID_UID = 0xFFFF_FFFF


@given(record=records())
def test_record_has_the_key_of_an_element_with_the_same_flow(record: Record) -> None:
    exact, *_ = keys(record)
    found = flow(exact)
    assert found.uid == (None if record.uid == INVALID_UID else record.uid)
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
def test_keys_of_a_record_become_coarser(record: Record) -> None:
    exact, *rest = path = keys(record)
    assert tuple(rest) == fallback_keys(exact)
    assert len(set(path)) == len(path)
    counts = [_number_of_fields(flow(each)) for each in path]
    assert counts == sorted(counts, reverse=True)
    assert {flow(each).uid for each in path} == {flow(exact).uid}
    for number, each in enumerate(path):
        assert fallback_keys(each) == path[number + 1 :]
    assert path[-1].kind == "others"
    assert not flow(path[-1]).protocol


def _number_of_fields(found: Flow) -> int:
    return sum((bool(found.port), found.destination is not None, bool(found.protocol)))


@given(record=records())
def test_packet_without_a_socket_is_counted_with_the_invalid_user_id(record: Record) -> None:
    assert keys(replace(record, uid=None)) == keys(replace(record, uid=INVALID_UID))
    assert flow(keys(replace(record, uid=None))[0]).uid is None


@given(record=records())
def test_two_records_of_one_flow_have_one_key(record: Record) -> None:
    other = replace(
        record, source=None, source_port=None, in_interface="other", length=1, gid=5, time_ns=1
    )
    assert keys(other) == keys(record)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0" * 64])
def test_key_of_the_wrong_length_has_no_flow(kind: str, data: bytes) -> None:
    with pytest.raises(struct.error):
        flow(Key(kind, data))  # type: ignore[arg-type]


def test_keys_have_the_bytes_of_the_kernel() -> None:
    """Fields are padded to four bytes. User ids are in host byte order, all others as sent."""
    user = (1000).to_bytes(4, sys.byteorder)
    families: tuple[tuple[Kind, dict[str, Any], int, bytes], ...] = (
        ("flows4", V4, 6, b"\x08\x00"),
        ("flows6", V6, 33, b"\x86\xdd"),
    )
    for kind, packet, protocol, ethertype in families:
        sent = record(**packet, uid=1000, protocol=protocol, destination_port=443)
        start = user + bytes([protocol, 0, 0, 0]) + ip_address(packet["destination"]).packed
        exact = Key(kind, start + b"\x01\xbb\0\0")
        other = user + ethertype + b"\0\0"
        assert keys(sent) == (
            exact,
            Key(kind, start + bytes(4)),
            Key("others", other + bytes([protocol, 0, 0, 0])),
            Key("others", other + bytes(4)),
        )
        assert without_port(exact) == Key(kind, start + bytes(4))
        assert user_of(exact) == 1000
        # Without an address, the packet's ethertype comes first.
        bare = record(ip_version=packet["ip_version"], uid=1000)
        assert keys(bare) == (Key("others", other + bytes(4)),)
        assert keys(replace(bare, ethertype=0x88B5))[0].data[4:6] == b"\x88\xb5"
    assert keys(record()) == (Key("others", b"\xff" * 4 + bytes(8)),)


def test_renumbered_users_that_share_a_number_are_added_up() -> None:
    def key(uid: int) -> bytes:
        return uid.to_bytes(4, sys.byteorder) + b"\x08\x00" + bytes(6)

    found = (
        Element(key(1), 2, 20, 300),
        Element(key(2), 3, 40, 100),
        Element(key(INVALID_UID), 1, 9, 5),
    )
    nothing = Count()
    assert nothing == (0, 0)
    reading = RuleReading(
        refused_before=nothing, refused=nothing, overflow=nothing, elements={"others": found}
    )
    assert map_uids(reading, lambda _: 65534).elements == {
        "others": (Element(key(65534), 5, 60, 100), Element(key(INVALID_UID), 1, 9, 5))
    }


def test_flow_has_a_port_where_its_protocol_begins_with_ports() -> None:
    for protocol in range(256):
        sent = record(**V4, protocol=protocol, destination_port=443)
        assert flow(keys(sent)[0]).port == (443 if protocol in PORTS else None), protocol
        without = record(**V4, protocol=protocol, destination_port=None)
        assert lacks_port(without) == (protocol in PORTS), protocol
