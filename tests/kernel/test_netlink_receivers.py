"""Netlink receivers: they ignore messages of other processes and detect dropped ones."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.fence.nft_monitor import OVERRUN, NftMonitor
from ocsf_nft.fence.spec import TableId
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.sources.nflog import group_binding as nflog_group
from ocsf_nft.sources.nflog.group_binding import CALM
from tests.kernel.attempts import GROUP, attempt, fence
from tests.kernel.conftest import load
from tests.kernel.reading import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_TABLE = TableId("inet", "observed")
_FULL = "the NFLOG socket's buffer was full"


@pytest.fixture
def namespace(lab: Lab) -> Namespace:
    return lab.sandbox_namespace


@pytest.fixture
def monitor(namespace: Namespace) -> Iterator[NftMonitor]:
    made = NftMonitor(namespace, (_TABLE,))
    yield made
    made.close()


def _forge(namespace: Namespace, receiver: socket.socket, family: int, *messages: bytes) -> None:
    """Send messages to a socket from another process; return when they have arrived."""
    port = receiver.getsockname()[0]

    def send() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as sock:
            for message in messages:
                sock.sendto(message, (port, 0))

    namespace.call(send)


def _shrink_buffer(receiver: socket.socket) -> None:
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


async def test_other_processes_cannot_fill_the_buffer_of_the_nflog_reader(
    namespace: Namespace,
) -> None:
    fence(namespace, "sb1", nflog=True)
    async with Nflog(namespace, GROUP) as source:
        assert source._socket is not None
        _shrink_buffer(source._socket)
        forged = netlink.message(nflog_group.PACKET, 0, bytes(1000))
        for _ in range(10):
            with pytest.raises(ConnectionRefusedError):
                _forge(namespace, source._socket, netlink.NETLINK_NETFILTER, forged)
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert (len(read.records), read.gaps, read.rejected) == (1, (), ())


async def test_nflog_reader_does_not_accept_a_record_of_another_process(
    namespace: Namespace,
) -> None:
    """Another process can send before the socket is connected."""
    async with Nflog(namespace, GROUP) as source:
        connected = source._socket
        assert connected is not None
        source._socket = namespace.call(
            lambda: netlink.subscribe(netlink.NETLINK_NETFILTER, groups=0)
        )
        forged = netlink.message(nflog_group.PACKET, 0, bytes(64))
        failure = netlink.message(netlink.NLMSG_ERROR, 0, struct.pack("=i", -1).ljust(20, b"\0"))
        _forge(namespace, source._socket, netlink.NETLINK_NETFILTER, forged, failure)
        read = await until(source.batches(), lambda batch: len(batch.rejected) == 2)
        connected.close()
    assert {reject.kind for reject in read.rejected} == {"forged"}
    assert [bytes.fromhex(reject.line) for reject in read.rejected] == [forged, failure]
    assert not read.records
    assert not read.gaps


async def test_nflog_reader_names_the_full_buffer_and_counts_dropped_records(
    namespace: Namespace,
) -> None:
    fence(namespace, "sb1", nflog=True)
    async with Nflog(namespace, GROUP) as source:
        assert source._socket is not None
        _shrink_buffer(source._socket)
        attempt(namespace, 0, 20, "udp4")
        batches = source.batches()
        read = await until(batches, lambda batch: bool(batch.gaps))
        attempt(namespace, 0, 1, "udp4")
        last = await until(batches, lambda batch: bool(batch.records))
    assert [(gap.dropped, gap.reason[: len(_FULL)]) for gap in read.gaps] == [(None, _FULL)]
    assert [gap.dropped for gap in last.gaps] == [20 - len(read.records)]


def test_nflog_binding_ignores_the_messages_of_another_process(namespace: Namespace) -> None:
    def bound() -> list[bytes]:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        with sock:
            sock.bind((0, 0))
            sock.settimeout(5)
            forged = netlink.message(nflog_group.PACKET, 0, bytes(64))
            _forge(namespace, sock, netlink.NETLINK_NETFILTER, forged)
            return nflog_group._configure(sock, GROUP, CALM)

    assert namespace.call(bound) == []


def test_fence_notices_ignore_the_messages_of_another_process(
    namespace: Namespace, monitor: NftMonitor
) -> None:
    head = struct.pack("!BBH", nfnetlink.NFPROTO_INET, 0, 7)
    deleted = head + netlink.attribute(1, b"observed\0")
    ended = head + netlink.attribute(1, struct.pack("!I", 7))
    forged = [
        netlink.message(nfnetlink.SUBSYSTEM | kind, 0, body)
        for kind, body in ((2, deleted), (15, ended))
    ]
    assert isinstance(monitor.notices, socket.socket)
    _forge(namespace, monitor.notices, netlink.NETLINK_NETFILTER, *forged)
    assert monitor.read() == []


def test_fence_monitor_detects_dropped_notices(namespace: Namespace, monitor: NftMonitor) -> None:
    assert isinstance(monitor.notices, socket.socket)
    _shrink_buffer(monitor.notices)
    for _ in range(20):
        load(namespace, "add table inet observed\ndelete table inet observed\n")
    assert OVERRUN in monitor.read()
    load(namespace, "add table inet observed\n")
    (change,) = monitor.read()
    assert change.changes == "table inet observed was created or changed"
