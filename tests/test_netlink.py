"""Netlink messages that are malformed, late or of another sender, and sockets to nf_tables."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, netns, nfnetlink, privileges, rtnetlink
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables, Statement

if TYPE_CHECKING:
    from collections.abc import Iterator

_IFNAME = 3
_GETRULE = 7
_TABLE = struct.pack("!BBH", 1, 0, 0) + netlink.attribute(1, b"t\0")


def _link(name: str, *, index: int = 7, flags: int = 0) -> bytes:
    head = struct.pack("=BxHiII", 0, 0, index, flags, 0)
    return head + netlink.attribute(_IFNAME, name.encode() + b"\0")


def test_messages_end_at_a_malformed_one() -> None:
    whole = netlink.message(16, 0, b"abcd", 5)
    for read in (netlink.messages, netlink.headed):
        for length in (15, 0, 37):  # less than a header, more than there is
            malformed = struct.pack("=IHHII", length, 16, 0, 0, 0)
            assert len(list(read(memoryview(whole + malformed + whole)))) == 1
        assert len(list(read(memoryview(whole + whole[:15])))) == 1
        assert len(list(read(memoryview(whole + whole)))) == 2
    ((kind, payload),) = netlink.messages(memoryview(whole))
    assert (kind, bytes(payload)) == (16, b"abcd")


def test_link_without_a_name_or_cut_short_is_none() -> None:
    whole = _link("eth0", flags=8)
    assert rtnetlink.link(memoryview(whole)) == rtnetlink.Link(7, "eth0", is_loopback=True)
    assert rtnetlink.link(memoryview(whole[:16])) is None
    assert rtnetlink.link(memoryview(whole[:15])) is None
    assert rtnetlink.link(memoryview(b"")) is None


@pytest.mark.kernel
def test_request_ignores_the_messages_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = netlink.message(rtnetlink.RTM_NEWLINK, 0, _link("forged0"), 1)
    forged += netlink.message(netlink.NLMSG_DONE, 0, bytes(4), 1)

    class Overtaken(socket.socket):
        """A socket to which another process sends before the kernel answers."""

        def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
            self.bind((0, 0))
            other = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
            with contextlib.closing(other):
                other.sendto(forged, (self.getsockname()[0], 0))
            return super().sendto(data, address)

    def names() -> list[str]:
        with monkeypatch.context() as patched:
            module = SimpleNamespace(**{**vars(socket), "socket": Overtaken})
            patched.setattr(netlink, "socket", module)
            return [link.name for link in rtnetlink.links()]

    found = netns.in_scratch(names)
    assert "lo" in found
    assert "forged0" not in found


@pytest.fixture
def pair() -> Iterator[tuple[Nftables, Nftables]]:
    """Two sockets to nf_tables in a namespace of their own."""
    one, other = netns.in_scratch(lambda: (Nftables(), Nftables()))
    with one, other:
        yield one, other


@pytest.mark.kernel
def test_commit_skips_the_answers_to_earlier_questions(pair: tuple[Nftables, Nftables]) -> None:
    nftables, _ = pair
    before = nftables.generation()
    nftables._send(16, netlink.NLM_F_REQUEST, 0, b"")  # its answer is never read
    nftables.commit([Statement(0, 0, _TABLE)])
    assert nftables.generation() == before + 1
    assert nftables.table("inet", "t") is not None


@pytest.mark.kernel
def test_dump_during_a_change_is_interrupted_at_its_end(pair: tuple[Nftables, Nftables]) -> None:
    nftables, other = pair
    chain, rule = netlink.attribute(2, b"c\0"), netlink.attribute(7, b"x" * 200)
    rules = 1000
    nftables.commit(
        [
            Statement(0, 0, _TABLE),
            Statement(3, 0x400, _TABLE + netlink.attribute(3, b"c\0")),
            *[Statement(6, 0xC00, _TABLE + chain + rule)] * rules,
        ]
    )
    assert len(list(nftables.dump(_GETRULE, nfnetlink.NFPROTO_INET, b""))) == rules
    told = nftables.dump(_GETRULE, nfnetlink.NFPROTO_INET, b"")
    next(told)
    other.commit([Statement(0, 0, _TABLE.replace(b"t", b"u"))])  # another ruleset from here on
    found: list[None] = []
    with pytest.raises(InterruptedDumpError):
        found.extend(None for _ in told)
    assert len(found) > rules // 2


@pytest.mark.kernel
def test_subscribe_without_the_privilege_leaves_no_socket() -> None:
    def without() -> tuple[int, int]:
        privileges.keep_only(frozenset())
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs
        with pytest.raises(PermissionError):
            nfnetlink.subscribe()
        return before, len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs

    before, after = netns.in_scratch(without)
    assert after == before
