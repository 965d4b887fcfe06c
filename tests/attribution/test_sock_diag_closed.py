from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink
from ocsf_nft.attribution import sock_diag
from ocsf_nft.attribution.sock_diag import ClosedSockets
from ocsf_nft.netns import Namespace
from tests.attribution.living import until

if TYPE_CHECKING:
    from collections.abc import Iterator

UDP = socket.IPPROTO_UDP
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listens to the Linux kernel")


@pytest.fixture
def watch() -> Iterator[ClosedSockets]:
    with ClosedSockets(Namespace()) as opened:
        yield opened


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def closed_port(protocol: int = UDP, family: int = socket.AF_INET) -> int:
    """Return the port of a socket that was closed."""
    kind = socket.SOCK_DGRAM if protocol == UDP else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        sock.bind(("", 0))
        port = int(sock.getsockname()[1])
    time.sleep(0.01)
    return port


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("protocol", sorted(sock_diag.WATCHED_PROTOCOLS))
def test_closed_socket_is_reported(watch: ClosedSockets, family: int, protocol: int) -> None:
    since_ns = now_ns()
    port = closed_port(protocol, family)
    # On a busy machine, the kernel reports it later.
    until(lambda: watch.doubt(protocol, port, since_ns) is not None)
    assert watch.doubt(protocol, port, since_ns) == "a socket that had the packet's port was closed"


def test_open_socket_is_not_reported(watch: ClosedSockets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        since_ns = now_ns()
        closed_port()
        assert watch.doubt(UDP, port, since_ns) is None
    time.sleep(0.01)
    assert watch.doubt(UDP, port, since_ns) is not None
    assert watch.doubt(socket.IPPROTO_TCP, port, since_ns) is None


def test_socket_closed_before_the_packet_is_ignored(watch: ClosedSockets) -> None:
    before_ns = now_ns()
    port = closed_port()
    assert watch.doubt(UDP, port, before_ns) is not None
    assert watch.doubt(UDP, port, now_ns()) is None


@pytest.mark.parametrize(("since_ns", "is_reported"), [(50, True), (51, False)])
def test_doubt_is_about_sockets_closed_at_the_time_of_the_packet_or_later(
    since_ns: int, *, is_reported: bool
) -> None:
    watch = ClosedSockets(Namespace())
    watch._drain = lambda: True  # type: ignore[method-assign]
    watch._last[UDP][7] = 50
    closed = "a socket that had the packet's port was closed" if is_reported else None
    assert watch.doubt(UDP, 7, since_ns) == closed
    watch._dropped_ns = 50
    unsure = "the sandbox closes so many sockets that not each is reported" if is_reported else None
    assert watch.doubt(UDP, 8, since_ns) == unsure


def test_dropped_notices_put_every_port_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_SO_RCVBUFFORCE", socket.SO_RCVBUF)
    monkeypatch.setattr(sock_diag, "_BUFFER_BYTES", 1)
    with ClosedSockets(Namespace()) as watch:
        since_ns = now_ns()
        with watch._lock:
            for _ in range(100):
                closed_port()
            assert watch._drain()  # all notices, though the kernel dropped some
        doubt = watch.doubt(UDP, 1, since_ns)
        assert doubt == "the sandbox closes so many sockets that not each is reported"
        # The doubt ends when no later notice is missing.
        assert watch.doubt(UDP, 1, now_ns()) is None


def test_unread_notices_put_every_port_in_doubt(
    watch: ClosedSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "_MOST", 1)
    since_ns = now_ns()
    with watch._lock:
        for _ in range(3):
            closed_port()
    assert "not each is reported" in str(watch.doubt(UDP, 1, since_ns))


def test_notices_are_read_until_there_is_none() -> None:
    class Counted(socket.socket):
        reads = 0

        def recvfrom(self, *arguments: Any) -> Any:
            self.reads += 1
            return super().recvfrom(*arguments)

    watch = ClosedSockets(Namespace())
    with Counted(fileno=sock_diag._subscribe().detach()) as watch._socket:
        assert watch._drain()
        assert watch._socket.reads == 1


def test_notices_are_read_without_a_query(watch: ClosedSockets) -> None:
    port = closed_port()
    deadline = time.monotonic() + 5
    while port not in watch._last[UDP]:
        assert time.monotonic() < deadline
        select.select([watch], [], [], 1)
        watch.read()


def test_notice_of_another_process_is_ignored(watch: ClosedSockets) -> None:
    forged = netlink.message(20, 0, b"\0\0\0\0\0\1".ljust(72, b"\0"))
    port = watch._socket.getsockname()[0]
    forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)
    with forger, contextlib.suppress(OSError):  # needs a privilege
        forger.sendto(forged, (port, 0))
    time.sleep(0.05)
    assert 1 not in watch._last[UDP]


def test_notices_that_cannot_be_read_are_an_error() -> None:
    watch = ClosedSockets(Namespace())
    watch._socket = sock_diag._subscribe()
    assert watch.doubt(UDP, 1, now_ns()) is None
    with contextlib.closing(watch._socket), Path(os.devnull).open("rb") as file:
        os.dup2(file.fileno(), watch._socket.fileno())
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            watch.doubt(UDP, 1, now_ns())


def test_closed_listener_can_not_be_read() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - shorter
    with ClosedSockets(Namespace()) as watch:
        watch.read()
    with pytest.raises(OSError, match="Bad file descriptor"):
        watch.read()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - shorter


def test_notice_without_a_port_is_ignored(
    watch: ClosedSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = netlink.message(20, 0, b"\2\7\x10")  # SOCK_DIAG_BY_FAMILY
    received = [(cut, (0, 1))]

    class Socket:
        def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
            if not received:
                raise BlockingIOError
            return received.pop()

    with monkeypatch.context() as patch:
        patch.setattr(watch, "_socket", Socket())
        watch.read()
    assert not received
