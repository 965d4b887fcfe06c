"""Tests that compressed log files are read as others are, and that damaged ones are reported."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from backports import zstd

from ocsf_nft.conversion.compressed import decompressed
from ocsf_nft.errors import SourceError, UnsupportedError
from tests.cli import forked
from tests.sources.replaying import MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TEXT = "".join(f"[{each:5d}.000001] {MESSAGE}\n" for each in range(3_000)).encode()
_COMPRESSIONS = pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd.compress])


def _content(data: bytes) -> bytes:
    file = decompressed(io.BufferedReader(io.BytesIO(data)), "a.gz")
    return b"".join(iter(lambda: file.read1(1000), b""))


@_COMPRESSIONS
def test_compressed_file_has_its_content(compress: Callable[[bytes], bytes]) -> None:
    assert _content(compress(_TEXT)) == _TEXT
    assert _content(compress(_TEXT) + compress(b"more")) == _TEXT + b"more"
    assert _content(compress(b"")) == b""


@pytest.mark.parametrize("data", [_TEXT, b"", b"\x1f", b"\x1f\x8a", b"\xfd7zXZ"])
def test_other_file_is_read_as_it_is(data: bytes) -> None:
    assert _content(data) == data


@_COMPRESSIONS
@pytest.mark.parametrize("size", [-1, 40])
def test_file_that_is_cut_off_is_reported(compress: Callable[[bytes], bytes], size: int) -> None:
    with pytest.raises(SourceError, match=r"a\.gz can't be decompressed after [0-9,]+ bytes"):
        _content(compress(_TEXT)[:size])


@_COMPRESSIONS
def test_damaged_file_is_reported(compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(_TEXT))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(SourceError, match=r"can't be decompressed"):
        _content(bytes(data))


def test_xz_streams_with_padding_between_them_are_all_read() -> None:
    one, two = lzma.compress(_TEXT), lzma.compress(b"more")
    assert _content(one + bytes(8) + two + bytes(200_000) + two) == _TEXT + b"moremore"
    assert _content(one + bytes(4)) == _TEXT


@pytest.mark.parametrize("end", [b"garbage", b"\xfd8zXZ\0", b"\xfd7zX"])
def test_xz_file_with_damage_behind_a_stream_is_reported(end: bytes) -> None:
    with pytest.raises(SourceError, match=f"after {len(_TEXT):,} bytes of its content"):
        _content(lzma.compress(_TEXT) + end)


def test_xz_file_that_needs_much_memory_is_refused() -> None:
    assert _content(lzma.compress(_TEXT, preset=9)) == _TEXT
    # The header of the first block (The .xz File Format, 3.1): its size in words of 4 bytes is the
    # first byte, and its checksum the last word. The dictionary of LZMA2 has 4 GiB by the byte 40.
    data = bytearray(lzma.compress(_TEXT))
    end = 12 + 4 * data[12]
    data[16] = 40
    data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    with pytest.raises(SourceError, match="Memory usage limit exceeded"):
        _content(bytes(data))


def test_zstd_file_that_begins_with_a_skippable_frame_is_read() -> None:
    assert _content(b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstd.compress(_TEXT)) == _TEXT


def test_missing_library_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backports", None)
    with pytest.raises(UnsupportedError, match=r"install 'ocsf-nft\[zstd\]', or give .* zstdcat"):
        _content(zstd.compress(_TEXT))


@_COMPRESSIONS
def test_convert_reads_compressed_files(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log"
    path.write_bytes(compress(_TEXT))
    found = forked.run("convert", path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 3_000
    path.write_bytes(compress(_TEXT)[:-5])
    found = forked.run("convert", path)
    assert found.returncode == 3
    assert found.stderr.startswith(f"ocsf-nft: {path} can't be decompressed after ")
    assert found.stdout.count("\n") > 1_000
