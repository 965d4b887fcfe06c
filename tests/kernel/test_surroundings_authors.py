"""Attribution of changes of a fence's surroundings: its cost is bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.fence.surroundings.news import SurroundingsNews
from ocsf_nft.fence.surroundings.notices import RouteNotices
from ocsf_nft.fence.surroundings.watcher import SurroundingsWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import InstalledFence, StateDirectory

pytestmark = pytest.mark.kernel

_RTM_NEWRULE = 32
_SO_RCVBUFFORCE = 33
_RULES = 300
_DESCRIPTORS = 2_000


def _sender() -> socket.socket:
    """Return a socket for requests whose port is the id of this process."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
    sock.bind((os.getpid(), 0))
    return sock


def _add_rules(sock: socket.socket) -> None:
    """Add policy routing rules with one datagram."""
    batch = b"".join(
        netlink.message(
            _RTM_NEWRULE,
            netlink.NLM_F_REQUEST | 0x600,  # NLM_F_CREATE, NLM_F_EXCL
            struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 7, 0, 0, 1, 0)
            + netlink.attribute(10, struct.pack("=I", number)),  # FRA_FWMARK
        )
        for number in range(1, _RULES + 1)
    )
    sock.send(batch)


@contextlib.contextmanager
def _turned(installed: InstalledFence, state: StateDirectory) -> Iterator[Callable[[], Any]]:
    """Yield a function that lets a socket in the fence's namespace add rules, and checks once."""
    namespace = installed.namespace
    notices, news = RouteNotices(), list[SurroundingsNews]()
    with (
        namespace.call(_sender) as sender,
        namespace.call(rtnetlink.subscribe) as monitor,
    ):
        monitor.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        watcher = SurroundingsWatcher(
            installed, state, notices, monitor, news.append, self_heal=False
        )
        watcher.turn()

        def turn() -> SurroundingsNews:
            _add_rules(sender)
            time.sleep(0.2)
            with contextlib.suppress(BlockingIOError):
                while True:
                    for message in netlink.messages_with_headers(memoryview(monitor.recv(1 << 16))):
                        notices.take(message)
            watcher.turn()
            return news[-1]

        yield turn


def test_process_of_many_changes_is_searched_once(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[object] = []
    scandir = os.scandir

    def counting(path: Any) -> Any:
        scans.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    with _turned(installed, state) as turn:
        scans.clear()
        found = turn()
    assert len(found.added) == _RULES
    assert found.process is not None
    assert found.process.pid == os.getpid()
    assert scans.count("/proc") == 1


def test_process_is_unknown_beyond_the_most_descriptors(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocsf_nft.fence.netlink_sender._MOST_DESCRIPTORS", _DESCRIPTORS)
    reads: list[object] = []
    readlink = os.readlink

    def counting(path: Any, *, dir_fd: int | None = None) -> Any:
        reads.append(path)
        return readlink(path, dir_fd=dir_fd)

    with contextlib.ExitStack() as stack:
        for _ in range(_DESCRIPTORS + 1):
            stack.callback(os.close, os.dup(0))
        with _turned(installed, state) as turn:
            monkeypatch.setattr(os, "readlink", counting)
            found = turn()
    assert len(found.added) == _RULES
    assert found.process is None
    assert len(reads) < _DESCRIPTORS
