"""Lines of socket tables in /proc/net that no kernel writes."""

from __future__ import annotations

import errno

import pytest

from ocsf_nft.attribution import proc_net_sockets

_LINE = b"   0: 0100007F:1092 050000C0:01BB 0A 0:0 00:0 00000000  1000        0 471 1"


def test_line_of_a_socket_table_is_parsed() -> None:
    (found,) = proc_net_sockets._sockets(proc_net_sockets._inet_socket, [_LINE])
    assert found.inode == 471
    assert (found.uid, found.local_port, found.remote_port) == (1000, 4242, 443)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        _LINE[:40],
        _LINE.replace(b"1000", b"root"),
        _LINE.replace(b"050000C0:", b"050000C0"),
        _LINE.replace(b":1092", b":"),
        _LINE.replace(b"050000C0", b"-50000C0"),
    ],
)
def test_invalid_line_of_a_socket_table_is_an_os_error(line: bytes) -> None:
    with pytest.raises(OSError, match="a socket table in /proc/net is invalid") as raised:
        list(proc_net_sockets._sockets(proc_net_sockets._inet_socket, [_LINE, line]))
    assert raised.value.errno == errno.EBADMSG
