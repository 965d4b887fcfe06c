"""Notices about the host's ruleset that the guards of all sandboxes share."""

from __future__ import annotations

import contextlib
import errno
import secrets
import select
import socket
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.nft_monitor import OVERRUN, NftMonitor
from ocsf_nft.fence.spec import TableId
from ocsf_nft.lab import new_namespace
from tests.kernel.conftest import nft

if TYPE_CHECKING:
    from collections.abc import Iterator

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

        class Dropping:
            recvfrom = staticmethod(dropped)
            fileno = staticmethod(found.fileno)

        monkeypatch.setattr(thread.host_notices, "_socket", Dropping())
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
