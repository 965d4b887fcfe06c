"""Tests of the removal of payloads from NFLOG records."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.nflog.datagram import Datagram
from tests.sources.corpus_cases import cases, nflog

if TYPE_CHECKING:
    from ocsf_nft.record import Record

_SECRET: Final = b"token=s3cr3t-Value"
_UDP: Final = struct.pack("!4H", 4242, 53, 8 + len(_SECRET), 0)
_TCP: Final = struct.pack("!HHIIHHHH", 4242, 443, 1, 2, 0x8018, 512, 0, 0) + bytes(12)


def ipv4(protocol: int, rest: bytes) -> bytes:
    return struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(rest), 7, 0, 64, protocol, 0, b"\n\0\0\1", b"\n\0\0\2"
    ) + rest  # fmt: skip


def ipv6(protocol: int, rest: bytes) -> bytes:
    return struct.pack(
        "!IHBB16s16s", 6 << 28, len(rest), protocol, 64, b"\xfd" * 16, b"\xfe" * 16
    ) + (rest)


def datagram(captured: bytes, ethertype: int = 0x0800, **changes: Any) -> Datagram:
    return Datagram(
        group=5, family=1, hardware_protocol=ethertype, hook=3, received_ns=1, prefix="p",
        captured=captured,
    )._replace(**changes)  # fmt: skip


@pytest.mark.parametrize(
    ("captured", "ethertype"),
    [
        (ipv4(17, _UDP + _SECRET), 0x0800),
        (ipv4(6, _TCP + _SECRET), 0x0800),
        (ipv4(1, struct.pack("!BBHHH", 8, 0, 0, 1, 2) + _SECRET), 0x0800),
        (ipv4(1, struct.pack("!BBHI", 3, 3, 0, 0) + ipv4(17, _UDP + _SECRET)), 0x0800),
        (ipv4(47, _SECRET), 0x0800),
        (ipv6(17, _UDP + _SECRET), 0x86DD),
        (ipv6(0, bytes([17, 0, *bytes(6)]) + _UDP + _SECRET), 0x86DD),
        (ipv6(58, struct.pack("!BBHHH", 128, 0, 0, 1, 2) + _SECRET), 0x86DD),
        (bytes.fromhex("0001080006040001") + bytes(20) + _SECRET, 0x0806),
        (_SECRET, 0x88B5),
    ],
)
def test_nflog_raw_data_has_headers_and_no_payload(captured: bytes, ethertype: int) -> None:
    whole = datagram(captured, ethertype)
    line = nflog_line.render(whole, "nflog:x")
    found = _record(whole, line)
    assert _SECRET.hex() in line
    assert found.origin.raw.endswith(f" omitted={len(_SECRET)}")
    assert _SECRET.hex()[:8] not in found.origin.raw
    assert found.origin.raw == f"{line[: -2 * len(_SECRET)]} omitted={len(_SECRET)}"
    assert found.origin.raw_bytes == len(line)


def test_nflog_raw_data_of_a_frame_has_its_headers() -> None:
    ethernet = bytes.fromhex("020000000001 020000000002 0800")
    frame = datagram(ethernet + ipv4(17, _UDP + _SECRET), family=5, hook=1)
    found = _record(frame, nflog_line.render(frame, "nflog:x"))
    assert found.destination_port == 53
    assert found.origin.raw.endswith(f"{_UDP.hex()} omitted={len(_SECRET)}")


def test_nflog_record_of_each_corpus_message_is_the_same_without_payload() -> None:
    for case in cases():
        for payload in case.payloads:
            live = nflog(payload)
            parsed = nflog_line.parse(live.origin.raw)
            assert parsed is not None
            again = _record(parsed[0], live.origin.raw)
            assert again == live
            assert (again.origin.raw, again.origin.raw_bytes) == (
                live.origin.raw,
                live.origin.raw_bytes,
            )


@given(
    st.binary(max_size=200),
    st.sampled_from([0x0800, 0x86DD, 0x0806, 0x88B5]),
    st.sampled_from([2, 3, 5, 7, 10]),
    st.sampled_from([0, 1, 3]),
)
def test_nflog_raw_data_of_a_hostile_packet_gives_an_equal_record(
    captured: bytes, ethertype: int, family: int, hook: int
) -> None:
    for data in (captured, ipv4(6, captured), ipv6(0, captured), ipv4(1, captured)):
        whole = datagram(data, ethertype, family=family, hook=hook)
        line = nflog_line.render(whole, "nflog:x")
        live = _record(whole, line)
        parsed = nflog_line.parse(live.origin.raw)
        assert parsed is not None
        assert len(parsed[0].captured) == len(data)
        again = _record(parsed[0], live.origin.raw)
        assert again == live
        assert again.origin == live.origin
        assert live.origin.raw_bytes == len(line)


def test_nflog_line_that_lacks_too_many_bytes_is_not_parsed() -> None:
    line = nflog_line.render(datagram(b"E"), "nflog:x")
    assert nflog_line.parse(f"{line} omitted=65535") is not None
    assert nflog_line.parse(f"{line} omitted=65536") is None
    assert nflog_line.parse(f"{line} omitted=x") is None


def _record(logged: Datagram, line: str) -> Record:
    return nflog_datagram.record(
        logged, transport="nflog", identity="i", log_source="test", raw=line
    )
