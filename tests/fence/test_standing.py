"""Tables of a fence as the kernel returns them, where an answer is unusual."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import standing
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
        (other + comment, "abc"),
        (bytes([7, 0]) + other + comment + other, "abc"),
        (bytes([0, 2]) + b"\xff\0", "\ufffd"),
    ):
        assert standing._comment(userdata) == expected


def test_table_refused_by_the_kernel_is_an_error_with_its_cause() -> None:
    cases: tuple[tuple[int, type[OcsfNftError], str], ...] = (
        (errno.EPERM, UnsupportedError, "with CAP_NET_ADMIN over this network namespace"),
        (errno.EINVAL, UnsupportedError, "this kernel has no nf_tables: load that module"),
        (errno.EOPNOTSUPP, UnsupportedError, "this kernel has no nf_tables: load that module"),
        (errno.EPROTONOSUPPORT, UnsupportedError, "this kernel has no nf_tables"),
        (errno.EIO, FenceError, "the kernel doesn't tell what fence stands: Input/output error"),
    )
    for code, kind, sentence in cases:

        def refuse(code: int = code) -> NoReturn:
            raise OSError(code, os.strerror(code))

        with pytest.raises(kind, match=sentence):
            standing._answered(Namespace(), refuse)


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

    monkeypatch.setattr(standing, "_keys", keys)
    assert standing.elements(Namespace(), "inet", "ocsf_nft", ["allowed4"], 5) == (
        "allowed4: 10.0.0.1",
    )
    interrupted, most = 0, 3
    assert standing.elements(Namespace(), "inet", "ocsf_nft", ["allowed4"], 5) == (
        "allowed4: altered again and again while it was read",
    )
    assert interrupted == most
