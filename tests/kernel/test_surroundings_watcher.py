"""Turns of the watcher of a fence's surroundings: repeated undos, and authors."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.fence.spec import FenceSpec, TableId
from ocsf_nft.fence.surroundings import own_tables, undo, watcher
from ocsf_nft.fence.surroundings.changes import SurroundingChange
from ocsf_nft.fence.surroundings.notices import RouteNotices
from ocsf_nft.fence.surroundings.read_snapshot import Subject
from ocsf_nft.fence.surroundings.watcher import SurroundingsWatcher
from ocsf_nft.lab import GATEWAY4

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.surroundings.news import SurroundingsNews

pytestmark = pytest.mark.kernel

_RTM_NEWROUTE, _RTM_NEWQDISC = 24, 36
_CREATE = 0x400


def _sender() -> socket.socket:
    """Return a socket for requests whose port is the id of this process."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
    sock.bind((os.getpid(), 0))
    return sock


class Turns:
    """Watcher of a fence that is run step by step."""

    def __init__(self, installed: InstalledFence, state: StateDirectory, **options: Any) -> None:
        self.namespace = installed.namespace
        self.notices = RouteNotices()
        self.news: list[SurroundingsNews] = []
        self.sender = self.namespace.call(_sender)
        self._monitor = self.namespace.call(rtnetlink.subscribe)
        self._watcher = SurroundingsWatcher(
            installed, state, self.notices, self._monitor, self.news.append,
            **{"self_heal": True, **options},
        )  # fmt: skip
        self._watcher.turn()

    def close(self) -> None:
        self._monitor.close()
        self.sender.close()

    def do(self, *arguments: str) -> None:
        self.namespace.call(lambda: subprocess.run(arguments, check=True, capture_output=True))

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = memoryview(self._monitor.recv(1 << 16))
                for message in netlink.messages_with_headers(datagram):
                    self.notices.take(message)

    def turn(self) -> None:
        """Make all checks that are due."""
        time.sleep(max(0.0, self._watcher.deadline() - time.monotonic()) + 0.001)
        self._watcher.turn()

    def qdiscs(self) -> str:
        listed = self.namespace.call(
            lambda: subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True)
        )
        return listed.stdout.decode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(watcher, "_SETTLE_SECONDS", 0.2)


def test_change_during_a_pause_is_undone_after_it(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "MOST_UNDOS", 1)
    monkeypatch.setattr(watcher, "WINDOW_SECONDS", 1.0)
    with contextlib.closing(Turns(installed, state)) as turns:
        for device in ("lo", "sb0"):
            turns.do("tc", "qdisc", "add", "dev", device, "clsact")
            turns.read()
            turns.turn()
        first, second = turns.news
        assert [each.text for each in first.undone] == ["a tc qdisc clsact was added on lo"]
        assert second.is_paused
        assert [each.text for each in second.present] == ["a tc qdisc clsact was added on sb0"]
        deadline = time.monotonic() + 10
        while "clsact" in turns.qdiscs():
            assert time.monotonic() < deadline
            turns.turn()
    assert turns.news[-1].present == ()
    assert all(each.added == () for each in turns.news[2:])


def test_change_that_is_left_after_an_undo_is_undone_again(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may make it again before the result is read."""
    attempts: list[list[SurroundingChange]] = []
    real = undo.undo

    def contested(found: Iterable[SurroundingChange]) -> dict[SurroundingChange, str]:
        attempts.append(list(found))
        reasons = real(attempts[-1])
        if len(attempts) < 3:
            subprocess.run(["tc", "qdisc", "add", "dev", "lo", "clsact"], check=True)
        return reasons

    monkeypatch.setattr(undo, "undo", contested)
    monkeypatch.setattr(watcher, "RETRY_SECONDS", 0.5)
    with contextlib.closing(Turns(installed, state)) as turns:
        turns.do("tc", "qdisc", "add", "dev", "lo", "clsact")
        turns.read()
        started = time.monotonic()
        while len(attempts) < 3:
            assert time.monotonic() < started + 10
            turns.turn()
        assert time.monotonic() > started + 1
        assert "clsact" not in turns.qdiscs()
    assert turns.news[-1].present == ()


def test_only_another_retry_of_all_changes_uses_the_limit_of_undos(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[object] = []

    def refused(found: object) -> dict[SurroundingChange, str]:
        attempts.append(found)
        return {}

    monkeypatch.setattr(undo, "undo", refused)
    with contextlib.closing(Turns(installed, state)) as turns:
        for device in ("lo", "sb0"):
            turns.do("tc", "qdisc", "add", "dev", device, "clsact")
        turns.read()
        for _ in range(10):
            turns.turn()
    assert len(attempts) == 1


def _route(destination: str, gateway: str) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 3, 0, 1, 4)
    body += netlink.attribute(1, socket.inet_aton(destination))
    body += netlink.attribute(5, socket.inet_aton(gateway))
    body += netlink.attribute(4, struct.pack("=I", socket.if_nametoindex("sb0")))
    return netlink.message(_RTM_NEWROUTE, 5 | _CREATE, body, 1)


def _qdisc(kind: int, name: bytes, handle: int, parent: int) -> bytes:
    body = struct.pack("=BxxxiIII", 0, 1, handle, parent, 0)
    return netlink.message(kind, 5 | _CREATE, body + netlink.attribute(1, name + b"\0"), 1)


@contextlib.contextmanager
def _other_process(turns: Turns, *requests: bytes) -> Iterator[None]:
    """Let another process send requests, and hold its socket until the end."""
    code = textwrap.dedent(f"""
        import socket, time
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        for request in {requests!r}:
            sock.send(request)
            sock.recv(65536)
        print("sent", flush=True)
        time.sleep(60)
    """)
    process = turns.namespace.call(
        lambda: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "sent\n"
            yield
        finally:
            process.kill()


def _wait_until_ready(device: str) -> None:
    """Wait until the kernel has sent its notice that a device is ready.

    It sends such notices at most once a second for all devices of the machine
    (``net/core/link_watch.c``).
    """
    deadline = time.monotonic() + 30
    while b" state UP " not in subprocess.check_output(["ip", "-o", "link", "show", device]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _named(turns: Turns) -> list[int | None]:
    return [None if each.process is None else each.process.pid for each in turns.news]


@pytest.mark.parametrize("is_late", [True, False])
def test_route_names_only_the_process_that_changed_it(
    installed: InstalledFence, state: StateDirectory, is_late: bool
) -> None:
    """Another process that changes another route meanwhile is never named."""
    # A notice of the kernel itself would make the author of a route unknown.
    installed.namespace.call(lambda: _wait_until_ready("sb0"))
    with contextlib.closing(Turns(installed, state)) as turns:
        rival, other = turns.namespace.call(
            lambda: (_route(GATEWAY4, "10.200.0.7"), _route("192.0.2.9", "10.200.0.7"))
        )
        turns.sender.send(rival)
        turns.read()
        if is_late:
            turns.turn()
        with _other_process(turns, other):
            turns.read()
            while not turns.news:
                turns.turn()
    assert [each.added[0].kind for each in turns.news] == ["route"]
    assert _named(turns) == [os.getpid() if is_late else None]


def test_process_of_an_unread_notice_is_unknown(
    installed: InstalledFence, state: StateDirectory
) -> None:
    """The reading may show what another process has done since the last notice."""
    with contextlib.closing(Turns(installed, state)) as turns:
        turns.sender.send(_qdisc(_RTM_NEWQDISC, b"pfifo", 0x10000, 0xFFFFFFFF))
        turns.read()
        clsact = _qdisc(_RTM_NEWQDISC, b"clsact", 0xFFFF0000, 0xFFFFFFF1)
        with _other_process(turns, clsact):
            turns.turn()
    (news,) = turns.news
    assert "clsact" in news.added[0].text
    assert news.process is None


def test_table_with_the_name_of_the_guard_is_foreign_in_the_sandbox(
    installed: InstalledFence, state: StateDirectory
) -> None:
    guarded = FenceSpec(
        sandbox="agent", proxies=installed.spec.proxies, guard_device="veth7", group=4002
    )
    assert TableId("netdev", "ocsf_nft_veth7") in guarded.guard_tables
    others = own_tables.of_others(installed.identity, state)
    own = Subject.of(guarded, installed.around, others).own_tables
    assert own == tuple(guarded.tables)


def test_guards_of_other_fences_on_the_host_are_not_foreign(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fence may be installed at any time, while its record is not written yet."""
    monkeypatch.setattr(own_tables, "HOST", installed.namespace)
    monkeypatch.setattr(watcher, "RETRY_SECONDS", 0.1)
    late = "chain late { type filter hook ingress device lo priority 0; }"

    def tables() -> str:
        listed = installed.namespace.call(
            lambda: subprocess.run(["nft", "list", "tables"], check=True, capture_output=True)
        )
        return listed.stdout.decode()

    real = state.locked

    @contextlib.contextmanager
    def after_the_installation() -> Iterator[None]:
        with real():
            state.write(other)
            yield

    spec = FenceSpec(
        sandbox="agent", proxies=installed.spec.proxies, guard_device="veth7", group=4002
    )
    other = replace(installed, spec=spec)
    with contextlib.closing(Turns(installed, state)) as turns:
        monkeypatch.setattr(state, "locked", after_the_installation)
        turns.do("nft", f"table netdev ocsf_nft_veth7 {{ {late}; }}")
        turns._watcher._is_pending = True
        turns.turn()
        assert not turns.news
        turns.do("nft", f"table netdev ocsf_nft_veth8 {{ {late}; }}")
        turns._watcher._is_pending = True
        turns.turn()
        (news,) = turns.news
    assert "netdev ocsf_nft_veth8" in news.undone[0].text
    assert "ocsf_nft_veth7" in tables()


def test_many_changes_take_little_time(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuple(SurroundingChange("rule", (number,), "text") for number in range(4_000))
    with contextlib.closing(Turns(installed, state)) as turns:
        monkeypatch.setattr("ocsf_nft.fence.surroundings.changes.weakening", lambda *_: made)
        started = time.thread_time()
        for _ in range(2):
            turns._watcher._is_pending = True
            turns.turn()
        assert time.thread_time() - started < 0.5
    assert len(turns.news[-1].present) == len(made)
