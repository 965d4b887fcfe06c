"""Reading of files that gzip, xz or zstd compressed, as if they were not compressed."""

# ruff: noqa: PLC0415 - most files are not compressed

from __future__ import annotations

import io
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from ocsf_nft.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer


#: Maximum memory for an .xz stream: xz -9 needs 65 MiB, but a header may request 4 GiB.
_XZ_MEMORY: Final = 256 << 20
_XZ_READ: Final = 1 << 16


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def decompressed(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """Return a reader of the content of a file. The first bytes of the file show its format.

    If the file is not compressed, the reader is ``file`` itself. Otherwise its methods raise
    SourceError if the file is damaged or cut off. ``name`` is the name of the file in errors.
    Raises UnsupportedError if the format needs a library that is not installed.
    """
    start = file.peek(_LONGEST_START)
    for magic, open_file in _FORMATS.items():
        if start.startswith(magic):
            return io.BufferedReader(_Decompressed(open_file(file), name))
    return file


class _Decompressed(io.RawIOBase):
    """Content of a compressed file."""

    def __init__(self, file: _Readable, name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name
        self._bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer, and return the number of bytes: 0 at the end of the file.

        Raises SourceError if the file is damaged or cut off.
        """
        view = memoryview(buffer)
        try:
            content = self._file.read1(len(view))
        except Exception as error:  # each library has its own errors
            if isinstance(error, OSError) and error.errno is not None:  # of the file itself
                raise
            raise SourceError(
                f"{self._name} can't be decompressed after {self._bytes:,} bytes of its content: "
                f"{error}"
            ) from error
        view[: len(content)] = content
        self._bytes += len(content)
        return len(content)


def _gzip(file: io.BufferedReader) -> _Readable:
    import gzip

    return gzip.open(file)


class _Xz:
    """Content of an .xz file: streams, each with padding behind it (The .xz File Format, 2.2).

    lzma.open() silently ignores everything behind padding or behind a damaged header.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        import lzma

        self._file = file
        self._new_stream = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        self._stream = self._new_stream()

    def read1(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._stream.eof:
                data = self._stream.unused_data.lstrip(b"\0")
                while not data and (chunk := self._file.read1(_XZ_READ)):
                    data = chunk.lstrip(b"\0")
                if not data:
                    return b""
                self._stream = self._new_stream()
            elif self._stream.needs_input and not (data := self._file.read1(_XZ_READ)):
                raise EOFError("the last stream has no end")
            if content := self._stream.decompress(data, size):
                return content


def _zstd(file: io.BufferedReader) -> _Readable:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise UnsupportedError(
            "a file is compressed by zstd, which needs a library: install 'ocsf-nft[zstd]', or "
            "give the output of zstdcat to standard input"
        ) from None
    return zstd.open(file)


#: Functions that open a file, by its first bytes: RFC 1952, the .xz file format, RFC 8878.
_FORMATS: Final[dict[bytes, Callable[[io.BufferedReader], _Readable]]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\0": _Xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    # Skippable frames, with which pzstd begins a file.
    **{bytes((number, 0x2A, 0x4D, 0x18)): _zstd for number in range(0x50, 0x60)},
}
_LONGEST_START: Final = max(map(len, _FORMATS))
