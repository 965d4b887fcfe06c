"""Netlink messages that are malformed, late or of another sender, and sockets to nf_tables."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, netns, nfnetlink, privileges, rtnetlink
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables, Query, Statement

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
    for read in (netlink.messages, netlink.messages_with_headers):
        for length in (15, 0, 37):  # less than a header, more than the data
            malformed = struct.pack("=IHHII", length, 16, 0, 0, 0)
            assert len(list(read(memoryview(whole + malformed + whole)))) == 1
        assert len(list(read(memoryview(whole + whole[:15])))) == 1
        assert len(list(read(memoryview(whole + whole)))) == 2
    ((kind, payload),) = netlink.messages(memoryview(whole))
    assert (kind, bytes(payload)) == (16, b"abcd")


def test_attributes_are_padded_and_read_without_flags() -> None:
    for value, padding in ((b"", 0), (b"a", 3), (b"abc", 1), (b"abcd", 0), (b"abcde", 3)):
        made = netlink.attribute(5, value)
        assert made == struct.pack("=HH", 4 + len(value), 5) + value + bytes(padding)
    kinds = (1, 0x8001, 0x4002, 0x3FFF)
    payload = b"".join(netlink.attribute(kind, b"abcde"[:at]) for at, kind in enumerate(kinds, 1))
    found = [(kind, bytes(value)) for kind, value in netlink.attributes(memoryview(payload))]
    assert found == [(1, b"a"), (1, b"ab"), (2, b"abc"), (0x3FFF, b"abcd")]


def test_attributes_end_at_a_malformed_one() -> None:
    whole = netlink.attribute(1, b"abcd")
    for malformed in (b"\0", struct.pack("=HH", 3, 1), struct.pack("=HH", 13, 1) + b"abcd"):
        payload = memoryview(whole + malformed + b"\0" * 4 * (len(malformed) == 4))
        assert [kind for kind, _ in netlink.attributes(payload)] == [1]
    empty = memoryview(whole + netlink.attribute(2, b""))
    assert [(kind, bytes(value)) for kind, value in netlink.attributes(empty)] == [
        (1, b"abcd"), (2, b""),
    ]  # fmt: skip


def test_messages_with_headers_returns_the_whole_header_of_each_message() -> None:
    head = struct.pack("=IHHII", 19, 16, 0x302, 7, 99) + b"abc\0"
    one, other = netlink.messages_with_headers(memoryview(head + netlink.message(17, 0, b"")))
    assert (one[:4], bytes(one.payload)) == ((16, 0x302, 7, 99), b"abc")
    assert (other[:4], bytes(other.payload)) == ((17, 0, 0, 0), b"")
    found = netlink.messages(memoryview(head + netlink.message(17, 0, b"", 8)))
    assert [(kind, bytes(payload)) for kind, payload in found] == [(16, b"abc"), (17, b"")]


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", None), (bytes(4), None), (bytes(20), None), (struct.pack("=i", -errno.EPERM), 1)],
)
def test_error_is_the_code_of_the_kernel_or_none(payload: bytes, code: int | None) -> None:
    found = netlink.error_of(memoryview(payload + bytes(8) if code else payload))
    assert (found and (type(found), found.errno)) == (code and (PermissionError, code))
    if code is None:
        netlink.raise_for_error(memoryview(payload))
    else:
        with pytest.raises(PermissionError, match="Operation not permitted"):
            netlink.raise_for_error(memoryview(payload))


def test_link_is_a_port_where_it_has_a_master() -> None:
    body = _link("eth0") + netlink.attribute(10, struct.pack("=I", 3))
    assert rtnetlink.link(memoryview(body)) == rtnetlink.Link(
        7, "eth0", is_loopback=False, is_port=True, master=3
    )
    for number in (9, 11):
        other = _link("eth0") + netlink.attribute(number, struct.pack("=I", 3))
        assert rtnetlink.link(memoryview(other)) == rtnetlink.Link(7, "eth0", is_loopback=False)
    for flags in (0x7, 0x10):
        found = rtnetlink.link(memoryview(_link("eth0", flags=flags)))
        assert found is not None
        assert not found.is_loopback


@pytest.mark.kernel
def test_subscription_receives_links_and_where_asked_for_routes() -> None:
    def notices(sock: socket.socket, *command: str) -> set[int]:
        subprocess.run(["ip", *command], check=True)
        kinds = set()
        with contextlib.suppress(BlockingIOError):
            while True:  # the kernel sends them before the command ends
                kinds |= {kind for kind, _ in netlink.messages(memoryview(sock.recv(1 << 16)))}
        return kinds

    def check() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with rtnetlink.subscribe() as sock:
            link = "link", "set", "lo", "mtu", "50000"
            assert notices(sock, *link) == {rtnetlink.RTM_NEWLINK}
            for version, destination in (("-4", "10.0.0.0/24"), ("-6", "fd00::/64")):
                added = notices(sock, version, "route", "add", destination, "dev", "lo")
                assert added == {24}  # RTM_NEWROUTE

    netns.in_scratch(check)


@pytest.mark.kernel
def test_request_raises_the_error_of_the_kernel() -> None:
    missing = struct.pack("=BxHiII", 0, 0, 999_999, 0, 0)
    with pytest.raises(OSError, match="No such device") as refused:
        netlink.request(netlink.NETLINK_ROUTE, rtnetlink.RTM_GETLINK, missing)
    assert refused.value.errno == errno.ENODEV


@pytest.mark.kernel
def test_request_needs_no_privilege() -> None:
    code = "from ocsf_nft import rtnetlink; print([each.name for each in rtnetlink.links()])"
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'lo'" in done.stdout


@pytest.mark.kernel
def test_commit_raises_the_error_of_the_first_refused_statement(
    pair: tuple[Nftables, Nftables],
) -> None:
    nftables, _ = pair
    nftables.commit([Statement(0, 0, _TABLE)])
    exists, missing = Statement(0, 0x200, _TABLE), Statement(2, 0, _TABLE.replace(b"t", b"u"))
    made = Statement(0, 0, _TABLE.replace(b"t", b"v"))
    for statements, code in (
        ([exists, missing, made], errno.EEXIST),
        ([made, missing, exists], errno.ENOENT),
        ([made, exists], errno.EEXIST),
        ([made, missing, made], errno.ENOENT),
    ):
        before = nftables.generation()
        with pytest.raises(OSError, match=os.strerror(code)):
            nftables.commit(statements)
        assert nftables.generation() == before
        assert nftables.table("inet", "v") is None


def test_link_without_a_name_or_cut_short_is_none() -> None:
    whole = _link("eth0", flags=8)
    assert rtnetlink.link(memoryview(whole)) == rtnetlink.Link(7, "eth0", is_loopback=True)
    assert rtnetlink.link(memoryview(whole[:16])) is None
    assert rtnetlink.link(memoryview(whole[:15])) is None
    assert rtnetlink.link(memoryview(b"")) is None


@pytest.mark.kernel
def test_request_receives_no_messages_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = netlink.message(rtnetlink.RTM_NEWLINK, 0, _link("forged0"), 1)
    forged += netlink.message(netlink.NLMSG_DONE, 0, bytes(4), 1)
    refused = []

    class Attacked(socket.socket):
        """A socket to which another process sends before each request."""

        def send(self, *arguments: Any) -> int:
            other = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
            with contextlib.closing(other):
                try:
                    other.sendto(forged, (self.getsockname()[0], 0))
                except ConnectionRefusedError:
                    refused.append(True)
            return super().send(*arguments)

    def names() -> list[str]:
        with monkeypatch.context() as patched:
            module = SimpleNamespace(**{**vars(socket), "socket": Attacked})
            patched.setattr(netlink, "socket", module)
            return [link.name for link in rtnetlink.links()]

    found = netns.in_scratch(names)
    assert "lo" in found
    assert "forged0" not in found
    assert len(refused) == 2


@pytest.mark.kernel
def test_dump_has_the_objects_after_one_longer_than_a_page() -> None:
    def lengths() -> list[int]:
        logs = " ".join(f'log prefix "{number:0>100}"' for number in range(60))
        subprocess.run(["nft", f"table ip t {{ chain c {{ {logs}; counter; }}; }}"], check=True)
        kind = nfnetlink.SUBSYSTEM | _GETRULE
        found = netlink.request(
            netlink.NETLINK_NETFILTER, kind, struct.pack("!BBH", 0, 0, 0), dump=True
        )
        return [len(each) for each in found]

    long, short = netns.in_scratch(lengths)
    assert long > 4096 > short


def test_error_at_the_end_of_a_dump_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(netlink.NLMSG_ERROR, 0), (netlink.NLMSG_DONE, -errno.EMSGSIZE)])

    def receive(*_: object) -> bytes:
        kind, code = next(answers)
        return netlink.message(kind, 0, struct.pack("=i", code))

    monkeypatch.setattr(socket.socket, "recv", receive)
    with pytest.raises(OSError, match="Message too long"):
        netlink.request(netlink.NETLINK_ROUTE, rtnetlink.RTM_GETLINK, b"", dump=True)


@pytest.fixture
def pair() -> Iterator[tuple[Nftables, Nftables]]:
    """Yield two sockets to nf_tables in a separate namespace."""
    one, other = netns.in_scratch(lambda: (Nftables(), Nftables()))
    with one, other:
        yield one, other


@pytest.mark.kernel
def test_commit_skips_the_answers_to_earlier_questions(pair: tuple[Nftables, Nftables]) -> None:
    nftables, _ = pair
    before = nftables.generation()
    answers = nftables._answers
    with pytest.MonkeyPatch.context() as patched:  # its answer is never read
        patched.setattr(nftables, "_answers", lambda *_: iter(()))
        with pytest.raises(KeyError):
            nftables.generation()
    assert nftables._answers == answers
    nftables.commit([Statement(0, 0, _TABLE)])
    assert nftables.generation() == before + 1
    assert nftables.table("inet", "t") is not None


@pytest.mark.kernel
def test_several_objects_are_read_in_their_order(pair: tuple[Nftables, Nftables]) -> None:
    nftables, _ = pair
    nftables.commit([Statement(0, 0, _TABLE)])
    named = netlink.attribute(1, b"t\0")
    generation, table = Query(16, 0, b""), Query(1, 1, named)
    found = nftables.queries([generation, table, generation])
    assert [each.get(1, b"")[:2] for each in found] == [found[0][1][:2], b"t\0", found[0][1][:2]]
    missing = Query(1, 1, netlink.attribute(1, b"none\0"))
    with pytest.raises(FileNotFoundError):
        nftables.queries([table, missing, table])
    assert nftables.query(*table) == found[1], "no answer was left over"


@pytest.mark.kernel
def test_numbers_of_requests_begin_again_before_they_are_too_large(
    pair: tuple[Nftables, Nftables],
) -> None:
    nftables, _ = pair
    for used in range(6):
        nftables._sequence = 0xFFFFFFFF - used
        before = nftables.generation()
        nftables._sequence = 0xFFFFFFFF - used
        nftables.commit([Statement(0, 0, _TABLE)])
        # Only the first transaction changes something: then there is a table.
        assert nftables.generation() == before + (used == 0)


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
    messages = nftables.dump(_GETRULE, nfnetlink.NFPROTO_INET, b"")
    next(messages)
    other.commit([Statement(0, 0, _TABLE.replace(b"t", b"u"))])  # the ruleset changes here
    found: list[None] = []
    with pytest.raises(InterruptedDumpError):
        found.extend(None for _ in messages)
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


def test_error_with_an_impossible_number_is_an_os_error() -> None:
    lowest = memoryview(struct.pack("=i", -(1 << 31)))  # os.strerror() would raise OverflowError
    error = netlink.error_of(lowest)
    assert error is not None
    assert error.errno == errno.EBADMSG


def test_answer_without_a_generation_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nftables = Nftables.__new__(Nftables)
    monkeypatch.setattr(nftables, "query", lambda *_: {})
    with pytest.raises(OSError, match="no generation") as raised:
        nftables.generation()
    assert raised.value.errno == errno.EBADMSG
