"""SHA-256 of the programs that processes run, each file read once.

It is of the content of the file that was executed, not of the process: whoever can, maps other code
into itself. Reading takes as long as the file's server does: this belongs in a thread that may be
kept waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from typing import Final, NamedTuple

_CHUNK: Final = 1 << 20
_MEBIBYTE: Final = 1 << 20
_MINUTE_NS: Final = 60_000_000_000
_FUSE_SUPER_MAGIC: Final = 0x65735546  # include/uapi/linux/magic.h
#: Two contents within one tick of the file system's clock (FAT: 2 s) have the same times.
_SETTLED_NS: Final = 3_000_000_000


class _Key(NamedTuple):
    """A file, and all that changes when its content does."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    size: int


class Hashes:
    """What was read is kept for ``most_entries`` files, and read again only when it was changed.

    Larger files than ``most_bytes`` are not read, and in a minute no more than
    ``most_bytes_a_minute`` in all: many large programs, one after the other, don't keep this host
    busy. Safe to share by threads.
    """

    def __init__(
        self,
        *,
        most_bytes: int = 256 * _MEBIBYTE,
        most_entries: int = 1024,
        most_bytes_a_minute: int = 4096 * _MEBIBYTE,
    ) -> None:
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._most_bytes_a_minute = most_bytes_a_minute
        self._lock = threading.Lock()
        self._kept: dict[_Key, str] = {}
        self._minute_ends_ns = 0
        self._read = 0

    def sha256(self, program: int) -> str | None:
        """Of the file that a descriptor (O_PATH will do) is of, in hexadecimal.

        None where it is no regular file or too large, may not be read, or is changed meanwhile; and
        where it is a FUSE server's, which may give us another content than it gave the kernel.
        """
        status = os.fstat(program)
        key = _key(status)
        if not stat.S_ISREG(status.st_mode) or key.size > self._most_bytes:
            return None
        with self._lock:
            digest = self._kept.pop(key, None)
            if digest is not None:  # to the end: what is not asked for goes first
                self._kept[key] = digest
                return digest
        with contextlib.suppress(OSError):  # unreadable: another user's, or its server is gone
            return self._hashed(program, key)
        return None

    def _hashed(self, program: int, key: _Key) -> str | None:
        # The same file, whatever is at its path now. A lease on it (O_NONBLOCK) doesn't stop us.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(f"/proc/self/fd/{program}", flags)
        try:
            if _kind(descriptor) == _FUSE_SUPER_MAGIC or not self._may_read(key.size):
                return None
            digest = _digest(descriptor, key.size)
            status = os.fstat(descriptor)
            if digest is None or _key(status) != key:
                return None
            if time.time_ns() - key.changed_ns > _SETTLED_NS and not _is_loose(descriptor, status):
                self._keep(key, digest)
            return digest
        finally:
            os.close(descriptor)

    def _may_read(self, size: int) -> bool:
        with self._lock:
            now_ns = time.monotonic_ns()
            if now_ns >= self._minute_ends_ns:
                self._minute_ends_ns, self._read = now_ns + _MINUTE_NS, 0
            may = self._read + size <= self._most_bytes_a_minute
            self._read += size if may else 0
            return may

    def _keep(self, key: _Key, digest: str) -> None:
        with self._lock:
            self._kept.pop(key, None)
            while len(self._kept) >= self._most_entries:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = digest


def _key(status: os.stat_result) -> _Key:
    return _Key(
        status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
    )


def _digest(descriptor: int, size: int) -> str | None:
    """None where it isn't as long as it should be."""
    digest, left = hashlib.sha256(), size
    buffer = memoryview(bytearray(min(_CHUNK, size + 1)))
    while (count := os.readv(descriptor, [buffer])) > 0:
        digest.update(buffer[:count])
        left -= count
        if left < 0:
            return None
    return digest.hexdigest() if left == 0 else None


def _is_loose(descriptor: int, status: os.stat_result) -> bool:
    """Whether its content may change and its times not: a memfd that somebody has mapped to write.

    The kernel lets nobody write to a file that is executed, but for what never was at a path.
    """
    if status.st_nlink > 0:
        return False
    try:
        return not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    except OSError as error:
        if error.errno == errno.EINVAL:  # not in memory
            return False
        raise


def _kind(descriptor: int) -> int:
    """The file system's magic number."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs: 120 bytes, its type first
    if libc.fstatfs(descriptor, buffer) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_long.from_buffer(buffer).value
