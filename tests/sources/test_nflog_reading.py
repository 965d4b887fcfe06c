"""Tests of the NFLOG source with rare or malformed datagrams and failures of its socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import netlink
from ocsf_nft.errors import OcsfNftError, SourceError, UnsupportedError
from ocsf_nft.netns import Namespace
from ocsf_nft.record import Batch
from ocsf_nft.sources.nflog import Nflog, group_binding
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog.group_binding import CALM, PACKET
from tests.descriptors import no_more_descriptors
from tests.sources.corpus_cases import nflog
from tests.sources.test_nflog_message import message
from tests.sources.test_text import facts

_HEADER = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 3))


def _datagram(*payloads: bytes) -> memoryview:
    return memoryview(b"".join(netlink.message(PACKET, 0, payload) for payload in payloads))


def _valid(number: int | None) -> bytes:
    sequence = () if number is None else ((nflog_datagram.NFULA_SEQ, struct.pack("!I", number)),)
    return message([_HEADER, *sequence])


def _read(source: Nflog, *payloads: bytes) -> Batch:
    return Batch.of(source._read(_datagram(*payloads)))


def test_nflog_reader_counts_a_damaged_message_as_read() -> None:
    damaged = message([(nflog_datagram.NFULA_SEQ, struct.pack("!I", 1))])
    read = _read(Nflog(Namespace(), 5), _valid(0), damaged, _valid(2), _valid(5), damaged[:4])
    assert [record.origin.sequence for record in read.records] == [0, 2, 5]
    assert [(gap.dropped, gap.reason) for gap in read.gaps] == [(2, "the kernel dropped records")]
    assert [reject.kind for reject in read.rejected] == ["malformed"] * 2


def test_nflog_reader_gives_records_without_a_number_different_identities() -> None:
    source = Nflog(Namespace(), 5)
    read = _read(source, _valid(None), _valid(None), _valid(0))
    more = _read(source, _valid(None))
    identities = [record.origin.identity for record in read.records + more.records]
    assert identities == [":unnumbered-1", ":unnumbered-2", ":0", ":unnumbered-3"]
    assert not read.gaps


@given(st.lists(st.integers(0, 1000), max_size=50), st.integers(0, 2**33))
def test_nflog_reader_counts_the_skipped_numbers(skips: list[int], start: int) -> None:
    source = Nflog(Namespace(), 5)
    assert source._dropped_before(start % 2**32) == start % 2**32
    number = start
    for skip in skips:
        number += skip + 1
        assert source._dropped_before(number % 2**32) == skip


def test_nflog_reader_numbers_records_beyond_32_bits() -> None:
    read = _read(Nflog(Namespace(), 5), *map(_valid, (2**32 - 1, 0, 2)))
    numbers = [record.origin.identity for record in read.records]
    assert numbers == [":4294967295", ":4294967296", ":4294967298"]
    assert [gap.dropped for gap in read.gaps] == [2**32 - 1, 1]


def test_nflog_reader_raises_the_kernels_error() -> None:
    source = Nflog(Namespace(), 5)
    acknowledged = netlink.message(netlink.NLMSG_ERROR, 0, struct.pack("=i", 0))
    source._read(memoryview(acknowledged))
    refused = netlink.message(netlink.NLMSG_ERROR, 0, struct.pack("=i", -errno.ENODEV))
    with pytest.raises(SourceError, match=r"^reading NFLOG failed: No such device$"):
        source._read(memoryview(refused))


async def test_nflog_reader_raises_if_its_socket_fails() -> None:
    source = Nflog(Namespace(), 5)
    with pytest.raises(SourceError, match="the NFLOG source is not open: enter its context first"):
        await anext(source.batches())
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
    with sock, socket.socket() as unconnected:
        os.dup2(unconnected.fileno(), sock.fileno())
        source._socket = sock
        with pytest.raises(SourceError, match=r"^reading NFLOG failed: Transport endpoint is not"):
            await anext(source.batches())
    with pytest.raises(SourceError, match=r"^reading NFLOG failed: Bad file descriptor$"):
        source._set_batching(sock)


def test_nflog_group_that_can_not_be_bound_raises_with_the_cause() -> None:
    cases: list[tuple[OSError, type[OcsfNftError], str]] = [
        (OSError(code, os.strerror(code)), UnsupportedError, "this kernel has no NFLOG: load the")
        for code in (
            errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP,
        )
    ]  # fmt: skip
    cases += [
        (
            OSError(errno.ENOMEM, "no memory"),
            SourceError,
            "binding NFLOG group 7 failed: no memory",
        ),
        (TimeoutError(), SourceError, "binding NFLOG group 7 failed: TimeoutError"),
    ]
    for error, kind, sentence in cases:
        raised = group_binding._error_for(error, 7)
        assert type(raised) is kind, error
        assert str(raised).startswith(sentence), error
    with (
        pytest.raises(SourceError, match=r"^binding NFLOG group 7 failed: Too many open files$"),
        no_more_descriptors(),
    ):
        group_binding.bind(7, CALM)


def test_nflog_message_of_the_arp_family_or_rarp_is_decoded_as_arp() -> None:
    arp = bytes.fromhex("0001080006040001 4ea2fcb7c275 0aca0002 000000000000 0aca0001")
    for family, ethertype in ((3, 0x0806), (3, 0x0800), (5, 0x8035), (5, 0x0806)):
        header = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", ethertype, 0))
        found = nflog(message([header, (nflog_datagram.NFULA_PAYLOAD, arp)], family=family))
        decoded = facts(found)
        assert decoded["arp.destination"] == "10.202.0.1", (family, ethertype)
        assert decoded["arp.operation"] == 1


async def test_nflog_reader_reads_nothing_after_it_was_closed() -> None:
    async with Nflog(Namespace(), 5) as source:
        batches = source.batches()
    with pytest.raises(SourceError, match="the NFLOG source is not open: enter its context first"):
        await anext(batches)


class _Closing:
    """Fake socket whose closing the kernel may delay."""

    thread: threading.Thread | None = None

    def close(self) -> None:
        self.thread = threading.current_thread()


async def test_nflog_reader_closes_its_socket_beside_the_event_loop() -> None:
    source, sock = Nflog(Namespace(), 5), _Closing()
    source._socket = sock  # type: ignore[assignment]
    await source.__aexit__()
    assert sock.thread not in {None, threading.current_thread()}


class _Silent:
    """Fake socket without a datagram."""

    def __init__(self) -> None:
        self.reads = 0

    def recvfrom_into(self, _buffer: memoryview) -> object:
        self.reads += 1
        raise BlockingIOError


def test_nflog_reader_reads_an_empty_socket_once() -> None:
    source, silent = Nflog(Namespace(), 5), _Silent()
    assert source._drain(silent).records == ()  # type: ignore[arg-type]
    assert silent.reads == 1
