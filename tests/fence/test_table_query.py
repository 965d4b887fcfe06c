"""Tables of a fence as the kernel returns them, where an answer is unusual."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft import netns
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import table_query
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.errors import OcsfNftError


def test_comment_is_found_behind_other_data_of_a_table() -> None:
    other, comment = bytes([5, 1, 0]), bytes([0, 4]) + b"abc\0"
    for userdata, expected in (
        (b"", ""),
        (b"\0", ""),
        (other, ""),
        (comment, "abc"),
        (bytes([0, 3]) + b"abc", "abc"),
        (bytes([0, 3]) + b"abc" + other, "abc"),
        (other + comment, "abc"),
        (bytes([5, 2, 0, 0]) + comment, "abc"),
        (bytes([7, 0]) + other + comment + other, "abc"),
        (bytes([0, 2]) + b"\xff\0", "\ufffd"),
    ):
        assert table_query._comment(userdata) == expected


def test_table_refused_by_the_kernel_is_an_error_with_its_cause() -> None:
    cases: tuple[tuple[int, type[OcsfNftError], str], ...] = (
        (errno.EPERM, UnsupportedError, "with CAP_NET_ADMIN over this network namespace"),
        (errno.EINVAL, UnsupportedError, "this kernel has no nf_tables: load that module"),
        (errno.EOPNOTSUPP, UnsupportedError, "this kernel has no nf_tables: load that module"),
        (errno.EPROTONOSUPPORT, UnsupportedError, "this kernel has no nf_tables"),
        (
            errno.EIO,
            FenceError,
            "the kernel doesn't report the installed fence: Input/output error",
        ),
    )
    for code, kind, sentence in cases:

        def refuse(code: int = code) -> NoReturn:
            raise OSError(code, os.strerror(code))

        with pytest.raises(kind, match=sentence):
            table_query.call(Namespace(), refuse)


_TABLE = """table inet t {
    comment "ours"
    set four { type ipv4_addr; elements = { 10.0.0.2, 10.0.0.1, * } }
    set six { type ipv6_addr; elements = { fd00::7 } }
    set allowed4 {
        type ipv4_addr . inet_proto . inet_service
        elements = { 10.0.0.2 . udp . 53, 10.0.0.1 . tcp . 3128, 10.0.0.3 . sctp . 65535 }
    }
    set allowed6 {
        type ipv6_addr . inet_proto . inet_service
        elements = { fd00::7 . tcp . 443 }
    }
}
"""
_ELEMENTS = (
    "six: fd00::7",
    "four: *",
    "four: 10.0.0.1",
    "four: 10.0.0.2",
    "allowed4: 10.0.0.1 . tcp . 3128",
    "allowed4: 10.0.0.2 . udp . 53",
    "allowed4: 10.0.0.3 . 132 . 65535",
    "allowed6: fd00::7 . tcp . 443",
)


@pytest.mark.kernel
def test_elements_are_sorted_addresses_and_endpoints_up_to_a_limit() -> None:
    def read(most: int, *sets: str, family: str = "inet") -> tuple[str, ...]:
        return table_query.elements(Namespace(), family, "t", sets, most)

    def check() -> None:
        subprocess.run(["nft", "-f", "-"], input=_TABLE, text=True, check=True)
        assert read(3, "six", "four", "missing", "allowed4", "allowed6") == _ELEMENTS
        assert read(2, "four", "six") == ("four: more than 2 elements", "six: fd00::7")
        assert read(3, "four", family="netdev") == ()
        assert table_query.comment(Namespace(), "inet", "t") == "ours"
        assert table_query.comment(Namespace(), "inet", "u") is None

    netns.in_scratch(check)


def test_elements_with_a_key_of_no_endpoint_are_shown_as_bytes() -> None:
    endpoint = bytes.fromhex("0a000001 06000000 0c380000")
    assert table_query._key_text(endpoint) == "10.0.0.1 . tcp . 3128"
    for at in (5, 6, 7, 10, 11):  # the padding of the protocol, and that of the port
        other = endpoint[:at] + b"\1" + endpoint[at + 1 :]
        assert table_query._key_text(other) == other.hex()
    assert table_query._key_text(bytes(5)) == "00" * 5


@pytest.mark.kernel
def test_elements_that_change_in_each_of_three_readings_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted = 0
    most = 2

    def keys(_: Nftables, _family: str, _table: str, _name: str) -> Iterator[bytes]:
        nonlocal interrupted
        yield b"\x0a\0\0\1"
        if interrupted < most:
            interrupted += 1
            raise InterruptedDumpError

    monkeypatch.setattr(table_query, "_keys", keys)
    assert table_query.elements(Namespace(), "inet", "ocsf_nft", ["allowed4"], 5) == (
        "allowed4: 10.0.0.1",
    )
    interrupted, most = 0, 3
    assert table_query.elements(Namespace(), "inet", "ocsf_nft", ["allowed4"], 5) == (
        "allowed4: altered again and again while it was read",
    )
    assert interrupted == most
