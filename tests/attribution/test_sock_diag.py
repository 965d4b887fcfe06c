from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, netns
from ocsf_nft.attribution import proc_net_sockets, sock_diag
from ocsf_nft.attribution.proc_net_sockets import TooManySocketsError
from ocsf_nft.attribution.sock_diag import SocketTables
from ocsf_nft.errors import AbsentError
from ocsf_nft.ip_text import packed
from ocsf_nft.netns import Namespace, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.proc_net_sockets import IpVersion

UDP = socket.IPPROTO_UDP
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="queries the Linux kernel")


@pytest.fixture
def tables() -> Iterator[SocketTables]:
    with SocketTables(Namespace()) as opened:
        yield opened


@pytest.fixture(params=["netlink", "text"])
def either_tables(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SocketTables]:
    """Return the tables with netlink, and without it."""
    if request.param == "text":

        def lacking() -> socket.socket:
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

        monkeypatch.setattr(sock_diag, "_open_diag", lacking)
    with SocketTables(Namespace()) as opened:
        yield opened


def deadline() -> int:
    return time.monotonic_ns() + 5_000_000_000


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def udp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def test_unconnected_socket_is_found_by_its_port(either_tables: SocketTables) -> None:
    with udp() as mine, udp() as other:
        mine.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port = mine.getsockname()[1]
        (found,) = either_tables.by_port(UDP, 4, port, deadline_ns=deadline())
    assert (found.local_port, found.remote, found.remote_port) == (port, "0.0.0.0", 0)
    assert found.uid == os.getuid()


def test_found_socket_has_its_inode(either_tables: SocketTables) -> None:
    with udp() as mine:
        mine.bind(("127.0.0.1", 0))
        (found,) = either_tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
        assert found.inode == inode(mine)


def test_ipv6_socket_can_send_to_ipv4(either_tables: SocketTables) -> None:
    with udp(socket.AF_INET6) as mine:
        mine.connect(("::ffff:127.0.0.1", 9))
        port = mine.getsockname()[1]
        versions: tuple[IpVersion, ...] = (4, 6)
        for version in versions:
            (found,) = either_tables.by_port(UDP, version, port, deadline_ns=deadline())
            assert (found.remote, found.remote_port) == ("127.0.0.1", 9)


def test_ipv4_socket_cannot_send_to_ipv6(either_tables: SocketTables) -> None:
    with udp() as mine:
        mine.bind(("127.0.0.1", 0))
        assert not either_tables.by_port(UDP, 6, mine.getsockname()[1], deadline_ns=deadline())


def test_ipv6_only_socket_cannot_send_to_ipv4(tables: SocketTables) -> None:
    with udp(socket.AF_INET6) as mine:
        mine.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        mine.bind(("::", 0))
        port = mine.getsockname()[1]
        assert tables.by_port(UDP, 6, port, deadline_ns=deadline())
        assert not tables.by_port(UDP, 4, port, deadline_ns=deadline())


def test_each_socket_of_a_shared_port_is_found(either_tables: SocketTables) -> None:
    with udp() as mine, udp() as other:
        for sock in (mine, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        other.bind(mine.getsockname())
        found = either_tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
        assert {sock.inode for sock in found} == {inode(mine), inode(other)}


@pytest.mark.kernel
def test_too_many_sockets_are_refused_and_the_next_lookup_works(
    either_tables: SocketTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        with contextlib.ExitStack() as opened:
            # More than the kernel sends in one datagram.
            many = [opened.enter_context(udp()) for _ in range(500)]
            for sock in many:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(many[0].getsockname())
            port = many[0].getsockname()[1]
            for _ in range(2):
                with pytest.raises(TooManySocketsError):
                    either_tables.by_port(UDP, 4, port, deadline_ns=deadline())
            monkeypatch.setattr(proc_net_sockets, "MOST_SOCKETS", 499)
            with pytest.raises(TooManySocketsError):
                either_tables.by_port(UDP, 4, port, deadline_ns=deadline())
            monkeypatch.setattr(proc_net_sockets, "MOST_SOCKETS", 500)
            assert len(either_tables.by_port(UDP, 4, port, deadline_ns=deadline())) == 500

    # A namespace of its own: the kernel's text may omit a socket while another one in the same
    # namespace is closed.
    netns.in_scratch(check)


def test_lookup_ends_at_its_deadline(either_tables: SocketTables) -> None:
    with udp() as mine:
        mine.bind(("127.0.0.1", 0))
        with pytest.raises(TooManySocketsError):
            either_tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=0)


def test_too_long_text_is_refused(tables: SocketTables, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.files.raw(4, deadline())
    with tempfile.TemporaryFile() as table:
        monkeypatch.setitem(tables.files._open, "raw", table.fileno())
        table.write(b"\n" * (1 << 20))
        table.flush()
        assert tables.files._lines("raw", deadline()) == [b""] * ((1 << 20) - 1)
        table.write(b"\n")
        table.flush()
        with pytest.raises(TooManySocketsError):
            tables.files.raw(4, deadline())


def test_missing_table_of_the_kernel_is_empty(tables: SocketTables) -> None:
    assert tables.files._lines("no-such-table", deadline()) == []


def test_text_files_are_opened_again_after_they_were_closed() -> None:
    files = proc_net_sockets.ProcNetFiles(Namespace())
    for _ in range(2):
        files.packet(deadline())
        files.close()


@pytest.mark.kernel
def test_ping_socket_is_found_by_its_id() -> None:
    def check() -> None:
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        versions: tuple[tuple[IpVersion, socket.AddressFamily, int], ...] = (
            (4, socket.AF_INET, socket.IPPROTO_ICMP),
            (6, socket.AF_INET6, socket.IPPROTO_ICMPV6),
        )
        for version, family, protocol in versions:
            files = proc_net_sockets.ProcNetFiles(Namespace())
            with contextlib.closing(files), socket.socket(family, socket.SOCK_DGRAM, protocol) as s:
                s.bind(("", 77))
                assert files.ping(version, 78, deadline()) == ()
                (found,) = files.ping(version, 77, deadline())
                assert found.inode == inode(s)

    netns.in_scratch(check)


def test_protocol_without_netlink_support_is_read_from_the_text_files(tables: SocketTables) -> None:
    unknown = 200
    sequences = set()
    for _ in range(2):  # only the first request is sent
        with pytest.raises(FileNotFoundError):
            next(tables._dump(unknown, 4, 9, sock_diag._ALL_STATES, deadline()))
        assert tables._unsupported == {unknown}
        sequences.add(tables._sequence)
    assert len(sequences) == 1
    with udp() as mine:
        mine.bind(("127.0.0.1", 0))
        tables._unsupported.add(UDP)
        (found,) = tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
        assert found.inode == inode(mine)


def test_error_at_the_end_of_a_dump_is_raised(
    tables: SocketTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dump(code: int) -> list[proc_net_sockets.Socket]:
        # The request follows the error code.
        end = memoryview(struct.pack("=iI", code, 36))
        answer = netlink.Message(netlink.NLMSG_DONE, 0, 0, 0, end)
        monkeypatch.setattr(tables, "_answers", lambda _: [answer])
        return list(tables._dump(UDP, 6, 9, sock_diag._ALL_STATES, deadline()))

    assert dump(0) == []
    with pytest.raises(PermissionError):
        dump(-errno.EPERM)
    assert tables._unsupported == set()


def test_failure_to_open_the_socket_is_raised_and_the_next_lookup_works(
    tables: SocketTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_files() -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(sock_diag, "_open_diag", no_files)
        with pytest.raises(OSError, match="Too many open files"):
            tables.by_port(UDP, 4, 9, deadline_ns=deadline())
    assert tables._unsupported == set()
    assert tables._diag(UDP).fileno() >= 0


def test_answer_to_an_earlier_request_is_ignored(tables: SocketTables) -> None:
    with udp() as mine:
        mine.bind(("127.0.0.1", 0))
        tables._sequence = 0xFFFFFFFE
        for _ in range(2):  # the sequence number wraps
            tables._send_request(tables._diag(UDP), netlink.NLM_F_REQUEST, b"")  # gives an error
            (found,) = tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
            assert found.inode == inode(mine)
    assert tables._diag(UDP).gettimeout() == 1.0


def test_other_processes_cannot_send_answers(tables: SocketTables) -> None:
    assert not tables.by_port(UDP, 4, 0xFFFF, deadline_ns=deadline())  # binds the socket
    sock, sequence = tables._diag(UDP), tables._sequence + 1
    end = netlink.message(netlink.NLMSG_DONE, 0, bytes(4), sequence)
    forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, sock_diag._NETLINK_SOCK_DIAG)
    with udp() as mine, forger:
        with pytest.raises(ConnectionRefusedError):
            forger.sendto(end, sock.getsockname())
        mine.bind(("127.0.0.1", 0))
        (found,) = tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
        assert found.inode == inode(mine)


def test_namespace_is_closed_once() -> None:
    opened = SocketTables(Namespace()).__enter__()
    opened.__exit__()
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.__exit__()


def test_socket_without_an_answer_is_replaced(tables: SocketTables) -> None:
    stale = tables._diag(UDP)
    stale.settimeout(0.01)
    with pytest.raises(TimeoutError):
        tables._answers(stale)  # there was no request
    assert stale.fileno() == -1
    assert tables._diag(UDP) is not stale


@pytest.mark.parametrize(
    ("version", "address", "shown"),
    [
        (4, "127.0.0.1", "127.0.0.1"),
        (6, "::1", "::1"),
        (4, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_connection_is_found_by_both_its_ends(
    either_tables: SocketTables, version: IpVersion, address: str, shown: str
) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.create_server((shown, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((address, port)) as mine:
            own = mine.getsockname()[1]
            (found,) = either_tables.tcp(
                version, (shown, own), (shown, port), device=None, deadline_ns=deadline()
            )
            assert found.inode == inode(mine)
            # The listening socket does not have a connection to another port.
            assert not either_tables.tcp(
                version, (shown, port), (shown, 9), device=None, deadline_ns=deadline()
            )


def test_connection_of_a_socket_bound_to_a_device_is_found(tables: SocketTables) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        mine.connect(server.getsockname())
        ends = mine.getsockname(), mine.getpeername()
        (found,) = tables.tcp(4, *ends, device="lo", deadline_ns=deadline())
        assert found.inode == inode(mine)
        for other in ("no-such-device", None):
            assert not tables.tcp(4, *ends, device=other, deadline_ns=deadline())


def test_refused_connection_is_found_only_if_its_process_chose_the_port(
    tables: SocketTables,
) -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        refusing, free = one.getsockname(), other.getsockname()
    for is_chosen in (True, False):
        with socket.socket() as mine:
            mine.bind(free if is_chosen else ("127.0.0.1", 0))
            assert mine.connect_ex(refusing) == errno.ECONNREFUSED
            found = tables.tcp(4, mine.getsockname(), refusing, device=None, deadline_ns=deadline())
            assert [sock.inode for sock in found] == ([inode(mine)] if is_chosen else [])


def test_namespace_has_its_name_in_proc(tables: SocketTables) -> None:
    assert tables.link == str(Path("/proc/self/ns/net").readlink())


def test_namespace_stays_the_same_when_its_path_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "netns"
    path.symlink_to("/proc/self/ns/net")
    with SocketTables(Namespace(path)) as tables, udp() as mine:
        path.unlink()
        mine.bind(("127.0.0.1", 0))
        (found,) = tables.by_port(UDP, 4, mine.getsockname()[1], deadline_ns=deadline())
        assert found.inode == inode(mine)


def test_missing_namespace_is_absent() -> None:
    with pytest.raises(AbsentError), SocketTables(named("ocsf-nft-no-such")):
        pass


def test_line_of_a_text_file_is_parsed() -> None:
    order = sys.byteorder
    word = int.from_bytes(socket.inet_aton("10.200.0.2"), order)
    line = (
        f" 7701: {word:08X}:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000"
        "  1000        0 33294 2 000000009570c100 0"
    ).encode()
    found = proc_net_sockets._inet_socket(line)
    assert found == proc_net_sockets.Socket(33294, 1000, 5000, "0.0.0.0", 0)
    raw = socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    words = "".join(
        f"{int.from_bytes(raw[at : at + 4], order):08X}" for at in range(0, len(raw), 4)
    )
    line = f"  0: {words}:003A {words}:0000 07 0:0 00:0 0  7  0 12 2 0 0".encode()
    found = proc_net_sockets._inet_socket(line)
    assert found == proc_net_sockets.Socket(12, 7, 58, "2001:db8::7", 0)


def test_line_of_the_table_of_packet_sockets_is_parsed() -> None:
    line = b"00000000952b9f2c 3      3    0003   2     1 0      1000   44321 "
    found = proc_net_sockets._packet_socket(line)
    assert found == proc_net_sockets.Socket(inode=44321, uid=1000)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::7", "2001:db8::7"),
        ("::102:304", "::102:304"),  # which the C library writes as ::1.2.3.4
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_address_has_the_form_of_a_record(address: str, shown: str) -> None:
    raw = packed(address)
    assert raw is not None
    assert proc_net_sockets.address(raw) == shown


def test_cut_description_of_a_socket_is_an_os_error() -> None:
    whole = bytes([socket.AF_INET]) + bytes(71)
    assert sock_diag._inet_socket(memoryview(whole)).remote == "0.0.0.0"
    for length in (0, 12, 71):
        with pytest.raises(OSError, match="description of a socket is cut"):
            sock_diag._inet_socket(memoryview(whole[:length]))


def test_empty_attribute_of_a_socket_is_unknown() -> None:
    described = bytes([socket.AF_INET]) + bytes(71)
    for value, expected in ((b"", None), (b"\0", False), (b"\1", True)):
        payload = memoryview(described + netlink.attribute(sock_diag._SKV6ONLY, value))
        assert sock_diag._inet_socket(payload).is_only_ipv6 is expected
