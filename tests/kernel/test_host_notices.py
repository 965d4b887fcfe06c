"""Notices about the host's ruleset that the guards of all sandboxes share."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest

from ocsf_nft import nfnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence import host_notices
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.host_notices import QueuedNotices
from ocsf_nft.fence.nft_monitor import OVERRUN, NftMonitor
from ocsf_nft.fence.spec import TableId
from ocsf_nft.lab import new_namespace
from tests.descriptors import open_descriptors
from tests.kernel.conftest import nft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.guard_thread import Watched
    from ocsf_nft.fence.host_notices import HostNotices
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_FIRST, _SECOND = TableId("netdev", "first"), TableId("netdev", "second")


@pytest.fixture
def host() -> Iterator[Namespace]:
    with new_namespace(f"ocsf-nft-{secrets.token_hex(3)}") as made:
        yield made


@pytest.fixture
def thread() -> Iterator[GuardThread]:
    made = GuardThread()
    yield made
    made.close()


def _monitors(
    host: Namespace, shared: HostNotices, stack: contextlib.ExitStack
) -> tuple[NftMonitor, NftMonitor]:
    made = host.call(
        lambda: (NftMonitor(host, (_FIRST,), shared), NftMonitor(host, (_SECOND,), shared))
    )
    for each in made:
        stack.enter_context(contextlib.closing(each))
    return made


def _socket_of(thread: GuardThread) -> socket.socket:
    found = thread.host_notices._socket
    assert found is not None
    return found


class _Replaced:
    """Socket with another function to receive."""

    def __init__(self, sock: socket.socket, recvfrom: Callable[[int], Any]) -> None:
        self.recvfrom = recvfrom
        self.fileno = sock.fileno
        self.close = sock.close


def _failing(*_: object) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _break(thread: GuardThread) -> None:
    """Let the socket fail at the next reading."""
    shared = thread.host_notices
    with shared._lock:
        shared._socket = cast("Any", _Replaced(_socket_of(thread), _failing))


def _is_readable(monitor: NftMonitor, seconds: float) -> bool:
    return bool(select.select([monitor.notices.fileno()], [], [], seconds)[0])


def test_change_of_a_table_wakes_its_own_monitor_only(host: Namespace, thread: GuardThread) -> None:
    with contextlib.ExitStack() as stack:
        first, second = _monitors(host, thread.host_notices, stack)
        versions = first.version_now(), second.version_now()
        nft(host, "add table netdev first { chain a { }; chain b { }; }")
        assert _is_readable(first, 20)
        (change,) = first.read()
        assert change.created == {_FIRST}
        assert "chain a was created" in change.changes or "table netdev first" in change.changes
        assert not _is_readable(first, 0)
        assert not _is_readable(second, 0)
        assert second.read() == []
        assert first.version_now() != versions[0]
        assert second.version_now() == versions[1]
        nft(host, "add table netdev second; delete table netdev first")
        # Without a wait for the thread.
        assert [each.created for each in second.read()] == [{_SECOND}]
        assert [each.changes for each in first.read()] == ["table netdev first was deleted"]


def test_own_changes_are_no_changes_of_others(host: Namespace, thread: GuardThread) -> None:
    with contextlib.ExitStack() as stack:
        first, second = _monitors(host, thread.host_notices, stack)
        nft(host, "add table netdev first { flags owner, persist; }")
        assert len(first.read()) == 1
        first.take_ownership()
        assert first.is_owner
        assert first.read() == second.read() == []


def test_dropped_notices_concern_all(
    host: Namespace, thread: GuardThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        monitors = _monitors(host, thread.host_notices, stack)
        found = _socket_of(thread)

        def dropped(_size: int) -> tuple[bytes, tuple[int, int]]:
            monkeypatch.setattr(thread.host_notices, "_socket", found)
            raise OSError(errno.ENOBUFS, "dropped")

        monkeypatch.setattr(thread.host_notices, "_socket", _Replaced(found, dropped))
        for each in monitors:
            assert OVERRUN in each.read()
            assert each.read() == []


def test_last_monitor_closes_the_socket(host: Namespace, thread: GuardThread) -> None:
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            first, _ = _monitors(host, thread.host_notices, stack)
            assert isinstance(thread.host_notices._socket, socket.socket)
            nft(host, "add table netdev first; delete table netdev first")
            assert first.read()
        assert thread.host_notices._socket is None


@pytest.mark.parametrize("reader", ["thread", "monitor"])
def test_socket_that_fails_is_opened_again(
    host: Namespace, thread: GuardThread, reader: str
) -> None:
    with contextlib.ExitStack() as stack:
        monitors = _monitors(host, thread.host_notices, stack)
        _break(thread)
        if reader == "thread":
            nft(host, "add table inet other")
        else:
            host.call(monitors[0].version_now)
        for each in monitors:
            assert _is_readable(each, 20)
            assert OVERRUN in each.read()
        nft(host, "add table netdev second")
        assert _is_readable(monitors[1], 20)
        assert [each.created for each in monitors[1].read()] == [{_SECOND}]
        assert monitors[0].read() == []
    assert thread.host_notices._socket is None


def test_socket_that_can_not_be_opened_again_is_tried_later(
    host: Namespace, thread: GuardThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_notices, "_RETRY_SECONDS", 0.01)
    with contextlib.ExitStack() as stack:
        monitors = _monitors(host, thread.host_notices, stack)
        with monkeypatch.context() as patch:
            patch.setattr(nfnetlink, "subscribe", _failing)
            _break(thread)
            nft(host, "add table inet other")
            assert not _is_readable(monitors[0], 0.2)
            # No check may rely on the notices meanwhile.
            assert monitors[0].version_now() is None
            assert monitors[0].read() == []
            nft(host, "add table netdev first")
        for each in monitors:
            assert _is_readable(each, 20)
            assert each.read() == [OVERRUN]
            assert each.version_now() is not None


def test_last_subscription_may_end_while_another_begins(
    host: Namespace, thread: GuardThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, remove = thread.host_notices, thread.remove
    begun: list[threading.Thread] = []
    found: list[QueuedNotices] = []

    def begin() -> None:
        found.append(host.call(lambda: shared.subscribe((_SECOND,))))

    def remove_slowly(watched: Watched) -> None:
        if not begun:
            begun.append(threading.Thread(target=begin))
            begun[0].start()
            begun[0].join(0.3)
        remove(watched)

    opened = open_descriptors(collect=True)
    thread.add(shared)  # its own descriptors stay open until the end
    thread.remove(shared)
    own = open_descriptors() - opened
    monkeypatch.setattr(thread, "remove", remove_slowly)
    first = host.call(lambda: shared.subscribe((_FIRST,)))
    first.close()
    begun[0].join()
    (second,) = found
    nft(host, "add table netdev second")
    assert select.select([second.fileno()], [], [], 20)[0]
    second.close()
    assert shared._socket is None
    assert open_descriptors() == opened + own


def test_subscriptions_of_several_threads(host: Namespace, thread: GuardThread) -> None:
    def work() -> None:
        for _ in range(200):
            host.call(lambda: thread.host_notices.subscribe((_FIRST,)).close())

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work) for _ in range(4)]:
            each.result()
    assert thread.host_notices._socket is None


def test_subscription_that_fails_leaves_no_descriptor(
    host: Namespace, thread: GuardThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = thread.host_notices
    opened = open_descriptors(collect=True)
    for where, name, error in (
        (nfnetlink, "subscribe", SourceError),
        (thread, "add", OSError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, _failing)
            with pytest.raises(error):
                host.call(lambda: shared.subscribe((_FIRST,)))
    assert open_descriptors() == opened
    queue = QueuedNotices(shared, (_FIRST,))
    monkeypatch.setattr(shared, "unsubscribe", _failing)
    with pytest.raises(OSError, match="Input/output error"):
        queue.close()
    assert open_descriptors() == opened
