"""Interface names by index: the kernel's notices, and what happens when they fail."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.netns import Namespace
from ocsf_nft.sources.nflog import interface_names as nflog_links
from ocsf_nft.sources.nflog.interface_names import Links

_IFNAME = 3
_HOUR_NS = 3_600_000_000_000


def _notice(index: int, name: str) -> bytes:
    """RTM_NEWLINK of an interface."""
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    body += netlink.attribute(_IFNAME, name.encode() + b"\0")
    return netlink.message(rtnetlink.RTM_NEWLINK, 0, body)


def test_links_that_are_not_open_know_no_name() -> None:
    assert Links(Namespace()).name(1) is None


def test_links_keep_the_newest_names() -> None:
    links = Links(Namespace())
    for index in range(1, nflog_links._NAMES_KEPT + 1):
        links._take(memoryview(_notice(index, f"d{index}")))
    links._take(memoryview(_notice(1, "again") + _notice(5000, "one") + _notice(5001, "more")))
    assert [links.name(index) for index in (1, 2, 3, 4, 5000, 5001)] == [
        "again", None, None, "d4", "one", "more",
    ]  # fmt: skip


def test_links_ask_again_when_the_kernel_is_busy_with_another_dump() -> None:
    links = Links(Namespace())
    links.open()
    try:
        sock = links._socket
        assert sock is not None
        assert not links._dump_wanted
        assert nflog_links._asked_for_all(sock)
        links._dump_wanted, links._dumped_ns = True, 0
        links.refresh()
        assert links._dump_wanted
        # It is no earlier than an interval after the refused request.
        links._names.clear()
        links._dumped_ns += _HOUR_NS
        assert links.name(1) is None
        links._dumped_ns = 0
        assert links.name(1) == "lo"
        assert not links._dump_wanted
    finally:
        links.close()


def test_links_want_the_dump_that_can_not_be_asked_for() -> None:
    with rtnetlink.subscribe() as sock:
        pass
    assert not nflog_links._asked_for_all(sock)


def test_links_raise_when_the_notices_can_not_be_read() -> None:
    links = Links(Namespace())
    links.open()
    try:
        assert links._socket is not None
        with socket.socket() as unconnected:
            os.dup2(unconnected.fileno(), links._socket.fileno())
        with pytest.raises(SourceError, match=r"interfaces of .* watched: Transport endpoint"):
            links.refresh()
    finally:
        links.close()
