"""Tests that compressed log files are read as others are, and that damaged ones are reported."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
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
