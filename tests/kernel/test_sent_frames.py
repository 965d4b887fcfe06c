"""Reader of the frames of uplinks, with uplinks that are renamed or missing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ocsf_nft import rtnetlink
from ocsf_nft.errors import SourceError, UnsupportedError
from ocsf_nft.fence import sent_frames
from ocsf_nft.fence.rule_counters import NamedCounter
from ocsf_nft.fence.sent_frames import NotComparableError, SegmentingError, SentFrames
from ocsf_nft.fence.spec import HostEnd, HostLinks, Surroundings
from ocsf_nft.flow import Count
from ocsf_nft.lab import ip
from ocsf_nft.rtnetlink import RouteSocket
from tests.kernel import ethtool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def beside(lab: Lab) -> Iterator[socket.socket]:
    with lab.sandbox_namespace.call(socket.socket) as found:
        yield found


def _around(lab: Lab, *, has_end: bool = False) -> Surroundings:
    (index,) = (
        link.ifindex
        for link in lab.sandbox_namespace.call(lambda: list(rtnetlink.links()))
        if link.name == lab.sandbox_device
    )
    (end,) = (
        HostEnd(name=link.name, ifindex=link.ifindex)
        for link in lab.gateway_namespace.call(lambda: list(rtnetlink.links()))
        if link.name == lab.gateway_device
    )
    return Surroundings(
        uplinks=(lab.sandbox_device,),
        uplink_indexes=(index,),
        host=HostLinks(ends=(end,) if has_end else ()),
    )


def _open(beside: socket.socket, around: Surroundings) -> contextlib.closing[SentFrames]:
    return contextlib.closing(SentFrames(beside, around, lambda *_: None))


def _switch(lab: Lab, device: str, *, on: bool) -> None:
    lab.sandbox_namespace.call(partial(ethtool.switch, device, ethtool.TSO, on=on))


def _rename(lab: Lab, device: str, name: str) -> None:
    ip("-n", lab.sandbox, "link", "set", device, "down")
    ip("-n", lab.sandbox, "link", "set", device, "name", name, "up")


def test_offload_of_a_renamed_uplink_is_read(lab: Lab, beside: socket.socket) -> None:
    with _open(beside, _around(lab)) as frames:
        _rename(lab, lab.sandbox_device, "other0")
        frames.check_offload()
        _switch(lab, "other0", on=False)
        with pytest.raises(SegmentingError, match="offload of the interface other0 is off"):
            frames.check_offload()


def test_offload_is_read_again_if_the_uplink_is_renamed_meanwhile(
    lab: Lab, beside: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(beside, _around(lab)) as frames:
        _switch(lab, lab.sandbox_device, on=False)
        names = ["earlier0", "earlier1"]

        def name_of(index: int) -> str:
            return names.pop() if names else socket.if_indextoname(index)

        monkeypatch.setattr(sent_frames, "_name_of", name_of)
        with pytest.raises(SegmentingError, match="offload of the interface sb0 is off"):
            frames.check_offload()
        monkeypatch.setattr(sent_frames, "_name_of", lambda _: "earlier0")
        with pytest.raises(NotComparableError, match="an interface is missing"):
            frames.check_offload()


@pytest.mark.parametrize(
    ("handles", "frames"),
    [((7, 2), 3), ((8, 1), 3), ((7, 1), 2)],
    ids=["counter", "table", "reset"],
)
def test_counters_that_are_replaced_or_reset_during_a_reading_are_not_compared(
    lab: Lab, beside: socket.socket, handles: tuple[int, int], frames: int
) -> None:
    seen, stopped = NamedCounter((7, 1), Count(3, 180)), NamedCounter((7, 3), Count())
    seen_later = NamedCounter(handles, Count(frames, 60 * frames))
    readings = iter([[seen, stopped], [stopped, seen_later], [seen, stopped], [stopped, seen]])
    opened = SentFrames(beside, _around(lab), lambda *_: next(readings))
    with contextlib.closing(opened) as found:
        assert found.read() is None
        reading = found.read()
        assert reading is not None
        assert reading.passed_before == reading.passed_after == seen.total


@pytest.mark.parametrize("has_end", [False, True])
def test_offload_of_a_missing_uplink(lab: Lab, beside: socket.socket, has_end: bool) -> None:
    with _open(beside, _around(lab, has_end=has_end)) as frames:
        _switch(lab, lab.sandbox_device, on=False)
        ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "netns", lab.gateway)
        if has_end:  # each of its frames has bypassed the fence
            frames.check_offload()
        else:
            with pytest.raises(NotComparableError, match="an interface is missing"):
                frames.check_offload()


def test_error_of_the_kernel_is_reported(
    lab: Lab, beside: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with _open(beside, _around(lab)) as frames, monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", fail)
        patch.setattr(sent_frames, "call_beside", lambda _, work: work())
        patch.setattr(sent_frames, "_name_of", lambda _: "lo")
        with pytest.raises(SourceError, match="can't be counted: Cannot allocate memory"):
            frames.check_offload()


@pytest.mark.parametrize("failing", ["outside", "offload", "interrupt"])
def test_sockets_are_closed_if_the_start_fails(
    lab: Lab, beside: socket.socket, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    opened: list[RouteSocket] = []

    def open_or_fail() -> RouteSocket:
        if failing == "outside" and opened:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(RouteSocket())
        return opened[-1]

    def fail(*_: object) -> NoReturn:
        if failing == "interrupt":
            raise KeyboardInterrupt
        raise UnsupportedError("the network namespace of a socket can't be opened")

    monkeypatch.setattr(sent_frames, "RouteSocket", open_or_fail)
    if failing != "outside":
        monkeypatch.setattr(SentFrames, "check_offload", fail)
    expected: Any = {
        "outside": SourceError, "offload": UnsupportedError, "interrupt": KeyboardInterrupt
    }  # fmt: skip
    with pytest.raises(expected[failing]):
        SentFrames(beside, _around(lab), lambda *_: None)
    assert opened
    assert [each.socket.fileno() for each in opened] == [-1] * len(opened)
