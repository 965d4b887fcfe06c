"""Tests of interface names by index: kernel notifications and their failures."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.netns import Namespace
from ocsf_nft.sources.nflog import interface_names
from ocsf_nft.sources.nflog.interface_names import InterfaceNames

_IFNAME = 3
_HOUR_NS = 3_600_000_000_000


def _notification(index: int, name: str) -> bytes:
    """Return the RTM_NEWLINK message of an interface."""
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    body += netlink.attribute(_IFNAME, name.encode() + b"\0")
    return netlink.message(rtnetlink.RTM_NEWLINK, 0, body)


def test_interface_names_are_unknown_before_open() -> None:
    assert InterfaceNames(Namespace()).name(1) is None


def test_interface_names_store_the_newest() -> None:
    names = InterfaceNames(Namespace())
    for index in range(1, interface_names._MAX_NAMES + 1):
        names._handle(memoryview(_notification(index, f"d{index}")))
    names._handle(
        memoryview(
            _notification(1, "again") + _notification(5000, "one") + _notification(5001, "more")
        )
    )
    assert [names.name(index) for index in (1, 2, 3, 4, 5000, 5001)] == [
        "again", None, None, "d4", "one", "more",
    ]  # fmt: skip


def test_interface_names_request_a_refused_dump_again() -> None:
    names = InterfaceNames(Namespace())
    names.open()
    try:
        sock = names._socket
        assert sock is not None
        assert not names._needs_dump
        assert interface_names._request_dump(sock)
        names._needs_dump, names._dumped_ns = True, 0
        names.refresh()
        assert names._needs_dump
        # The next request comes an interval after the refused one, not earlier.
        names._names.clear()
        names._dumped_ns += _HOUR_NS
        assert names.name(1) is None
        names._dumped_ns = 0
        assert names.name(1) == "lo"
        assert not names._needs_dump
    finally:
        names.close()


def test_interface_names_still_need_a_dump_after_a_failed_request() -> None:
    with rtnetlink.subscribe() as sock:
        pass
    assert not interface_names._request_dump(sock)


def test_interface_names_raise_if_notifications_can_not_be_read() -> None:
    names = InterfaceNames(Namespace())
    names.open()
    try:
        assert names._socket is not None
        with socket.socket() as unconnected:
            os.dup2(unconnected.fileno(), names._socket.fileno())
        with pytest.raises(SourceError, match=r"interfaces of .* watched: Transport endpoint"):
            names.refresh()
    finally:
        names.close()
