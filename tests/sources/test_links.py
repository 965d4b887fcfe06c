"""Interface names by index, as the kernel tells them."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.sources.nflog import source as nflog_source
from ocsf_nft.sources.nflog.source import InterfaceNames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as made:
        yield made


class _Kernel:
    """Interfaces of a kernel, and the indexes that it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[int, bytes] = {}
        self.asked: list[int] = []
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)

    def _ioctl(self, _sock: socket.socket, _request: int, answer: bytearray) -> None:
        (index,) = struct.unpack_from("@I", answer, 16)
        self.asked.append(index)
        if index not in self.names:
            raise OSError
        answer[:16] = self.names[index].ljust(16, b"\0")


def test_loopback_has_its_name_and_an_unknown_index_has_none(sock: socket.socket) -> None:
    names = InterfaceNames()
    names.refresh(sock)
    assert names.name(1) == "lo"
    assert [names.name(index) for index in (0, 0x7FFFFFFF, 0xFFFFFFFF)] == [None] * 3


def test_no_name_is_known_without_a_socket() -> None:
    assert InterfaceNames().name(1) is None


def test_kernel_is_asked_once_between_two_refreshes(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _Kernel(monkeypatch)
    kernel.names[5] = b"eth0"
    names = InterfaceNames()
    names.refresh(sock)
    assert [names.name(index) for index in (5, 6, 5, 6)] == ["eth0", None, "eth0", None]
    assert kernel.asked == [5, 6]
    kernel.names[5] = b"a\xffb"
    assert names.name(5) == "eth0"
    names.refresh(sock)
    assert names.name(5) == "a\udcffb"
    assert kernel.asked == [5, 6, 5]


def test_name_of_a_deleted_interface_stays_known(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _Kernel(monkeypatch)
    kernel.names[5] = b"eth0"
    names = InterfaceNames()
    names.refresh(sock)
    assert names.name(5) == "eth0"
    kernel.names.clear()
    names.refresh(sock)
    assert names.name(5) == "eth0"


def test_table_has_the_newest_names(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _Kernel(monkeypatch)
    names = InterfaceNames()
    names.refresh(sock)
    for index in range(1, nflog_source._MAX_NAMES + 1):
        kernel.names[index] = f"d{index}".encode()
        names.name(index)
    names.refresh(sock)
    kernel.names = {1: b"again", 5000: b"one", 5001: b"more"}
    assert [names.name(index) for index in (1, 5000, 5001, 2, 3, 4)] == [
        "again", "one", "more", None, None, "d4",
    ]  # fmt: skip
