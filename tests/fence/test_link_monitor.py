"""New links that a link monitor finds and attaches, without a kernel's fence."""

from __future__ import annotations

import errno
import socket
import struct
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, netns, rtnetlink
from ocsf_nft.fence import link_monitor, restore_batch
from ocsf_nft.fence.link_monitor import LinkMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOPBACK = 0x8


@pytest.fixture
def commits() -> list[object]:
    return []


@pytest.fixture
def monitor(commits: list[object]) -> Iterator[LinkMonitor]:
    """Return a link monitor with a socket that gets no notices."""
    links, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    links.setblocking(False)
    tables: Any = SimpleNamespace(
        namespace=SimpleNamespace(call=lambda _: links), commit=commits.append
    )
    with links, other:
        yield LinkMonitor(tables, None)


def test_link_monitor_reads_notices_at_intervals(
    monitor: LinkMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: 100.0})
    monkeypatch.setattr(link_monitor, "time", clock)
    monitor.read(None, attaches=True)
    assert monitor.reads_from == 100.02


def test_link_monitor_attaches_new_links_in_the_sandbox_and_not_at_the_guard(
    monitor: LinkMonitor, commits: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = tuple(SimpleNamespace(full=what) for what in ("fence", "guard"))
    monkeypatch.setattr(restore_batch, "attach_statements", lambda full, names: (full, names))
    batch: Any = SimpleNamespace(links={"old"}, batches=batches)
    monitor.attach(batch, {"old"})
    assert monitor.attachments == 0
    monitor.attach(batch, {"old", "new"})
    assert commits == [("fence", {"new"})]
    assert monitor.attachments == 1


def _notice(index: int, name: str, *, kind: int = rtnetlink.RTM_NEWLINK, flags: int = 0) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, index, flags, 0)
    return netlink.message(kind, 0, body + netlink.attribute(3, name.encode() + b"\0"))


def test_link_monitor_takes_each_new_link_of_a_datagram(monitor: LinkMonitor) -> None:
    unnamed = netlink.message(rtnetlink.RTM_NEWLINK, 0, bytes(16))
    datagram = b"".join((
        _notice(2, "route", kind=24), unnamed, _notice(1, "lo", flags=_LOOPBACK),
        _notice(3, "known"), _notice(4, "fenced"), _notice(5, "new0"), _notice(6, "new1"),
        _notice(7, "removed"), _notice(7, "removed", kind=rtnetlink.RTM_DELLINK),
        _notice(8, "late", kind=rtnetlink.RTM_DELLINK),
    ))  # fmt: skip
    monitor._new = {3: "known", 8: "late"}
    found: dict[int, str] = {}
    monitor._take(datagram, found, {"fenced"})
    assert (found, monitor.new) == ({5: "new0", 6: "new1"}, frozenset({"known"}))
    monitor._device = "new1"
    found.clear()
    monitor._take(datagram, found, {"fenced"})
    assert found == {6: "new1"}


def test_link_monitor_knows_a_renamed_link_by_its_last_name(monitor: LinkMonitor) -> None:
    monitor._new = {3: "before"}
    found: dict[int, str] = {}
    monitor._take(b"".join(_notice(3, f"name{each}") for each in range(5_000)), found, set())
    assert (found, monitor.new) == ({3: "name4999"}, frozenset())
    monitor._take(_notice(3, "fenced"), found, {"fenced"})
    assert not found


@pytest.mark.parametrize("error", [None, OSError(errno.EBUSY, "busy")])
def test_link_monitor_attaches_the_present_links_after_dropped_notices(
    monitor: LinkMonitor,
    commits: list[object],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError | None,
) -> None:
    """The ends of links that were known may be among the dropped ones, again and again."""
    errors = [OSError(errno.ENOBUFS, "no buffer space"), BlockingIOError()]

    def receive(_: int) -> tuple[bytes, tuple[int, int]]:
        raise errors.pop(0)

    def present() -> Iterator[rtnetlink.Link]:
        if error is not None:
            raise error
        for index, name in enumerate(("lo", "old", "renamed"), 1):
            yield rtnetlink.Link(ifindex=index, name=name, is_loopback=name == "lo")

    monkeypatch.setattr(monitor, "notices", SimpleNamespace(recvfrom=receive))
    monkeypatch.setattr(netns, "call_beside", lambda _, work: work())
    monkeypatch.setattr(rtnetlink, "links", present)
    monkeypatch.setattr(restore_batch, "attach_statements", lambda _, names: names)
    batch: Any = SimpleNamespace(links=frozenset({"old"}), batches=[SimpleNamespace(full=())])
    monitor._new = {3: "new0"}
    assert monitor.read(batch, attaches=True)
    assert monitor.new == ({"renamed"} if error is None else set())
    assert commits == ([{"renamed"}] if error is None else [])


def test_link_monitor_ends_a_read_during_a_flood_of_notices(
    monitor: LinkMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = b"", (7, 0)
    monkeypatch.setattr(monitor, "notices", SimpleNamespace(recvfrom=lambda _: forged))
    monitor.read(None, attaches=True)
