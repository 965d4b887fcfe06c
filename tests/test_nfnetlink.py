from __future__ import annotations

import socket

import pytest

from ocsf_nft import nfnetlink
from ocsf_nft.nfnetlink import Nftables

pytestmark = pytest.mark.kernel


def _room(sock: socket.socket, option: int) -> int:
    """Return the requested buffer size; the kernel doubles it (socket(7))."""
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


def test_nfnetlink_sockets_have_room_for_a_large_transaction_and_for_notices() -> None:
    with Nftables() as nftables:
        found = [_room(nftables._socket, each) for each in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    assert found == [32 << 20, 32 << 20]
    with nfnetlink.subscribe() as sock:
        assert _room(sock, socket.SO_RCVBUF) == 1 << 20
