"""SHA-256 of the programs that processes run, computed from the executed files.

The hash does not cover the memory, into which a process can map other code.
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
from typing import Final, TypeAlias

_CHUNK: Final = 1 << 20
_MOST_CACHED: Final = 1024
_MOST_BYTES_A_MINUTE: Final = 4 << 30
_MINUTE_NS: Final = 60_000_000_000
_FUSE_SUPER_MAGIC: Final = 0x65735546  # include/uapi/linux/magic.h
#: Two versions within one tick of the file system's clock (FAT: 2 s) have the same times.
_SETTLED_NS: Final = 3_000_000_000


_Version: TypeAlias = tuple[int, int, int, int, int]


class ProgramHashes:
    """Cache of the SHA-256 of executed files; a cached file is read again only if it has changed.

    Files larger than ``most_bytes`` get no hash. At most 4 GiB are read in a minute: a file that
    would exceed this gets no hash until the next minute. Threads may share an instance.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._cache: dict[_Version, str] = {}
        self._minute_ends_ns = 0
        self._bytes_read = 0

    def sha256(self, program: int) -> str | None:
        """Return the hash of an executed file as hexadecimal text, or None.

        ``program`` is a descriptor; O_PATH is enough. The result is None if the file is not a
        regular file, exceeds a size limit, or is on FUSE. It is also None if the file can't be
        read, or changes during the read. May block.
        """
        status = os.fstat(program)
        if not stat.S_ISREG(status.st_mode) or status.st_size > self._most_bytes:
            return None
        version = _version(status)
        with self._lock:
            digest = self._cache.pop(version, None)
            if digest is not None:  # insert it again at the end: the first is evicted first
                self._cache[version] = digest
                return digest
        with contextlib.suppress(OSError):  # another user's file, or its server has exited
            return self._read(program, status)
        return None

    def _read(self, program: int, before: os.stat_result) -> str | None:
        # Opens the same file, also if its path has another one. O_NONBLOCK: not stopped by a lease.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(f"/proc/self/fd/{program}", flags)
        try:
            # A FUSE server may show the kernel and this process different content.
            if _file_system(descriptor) == _FUSE_SUPER_MAGIC or not self._may_read(before.st_size):
                return None
            # A slow file system may delay this, so the caller uses a thread that may block.
            digest = _digest(descriptor, before.st_size)
            status = os.fstat(descriptor)
            if digest is None or _version(status) != _version(before):
                return None
            is_settled = time.time_ns() - before.st_ctime_ns > _SETTLED_NS
            if is_settled and not _may_change_unnoticed(descriptor, status):
                self._store(_version(before), digest)
            return digest
        finally:
            os.close(descriptor)

    def _may_read(self, size: int) -> bool:
        with self._lock:
            now_ns = time.monotonic_ns()
            if now_ns >= self._minute_ends_ns:
                self._minute_ends_ns, self._bytes_read = now_ns + _MINUTE_NS, 0
            may = self._bytes_read + size <= _MOST_BYTES_A_MINUTE
            self._bytes_read += size if may else 0
            return may

    def _store(self, version: _Version, digest: str) -> None:
        with self._lock:
            self._cache.pop(version, None)
            while len(self._cache) >= _MOST_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[version] = digest


def _version(status: os.stat_result) -> _Version:
    """Return the identity of a file, and the attributes that change with its content."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _digest(descriptor: int, size: int) -> str | None:
    digest, left = hashlib.sha256(), size
    buffer = memoryview(bytearray(min(_CHUNK, size + 1)))
    while (count := os.readv(descriptor, [buffer])) > 0:
        digest.update(buffer[:count])
        left -= count
        if left < 0:
            return None
    return digest.hexdigest() if left == 0 else None


def _may_change_unnoticed(descriptor: int, status: os.stat_result) -> bool:
    """Return true if a file's content may change although its timestamps stay the same."""
    # Only a memfd without a seal against writes: a process may have a writable mapping of it. The
    # kernel forbids writes to other executed files.
    if status.st_nlink > 0:
        return False
    try:
        return not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    except OSError as error:
        if error.errno == errno.EINVAL:  # no memfd
            return False
        raise


def _file_system(descriptor: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs: 120 bytes, its type first
    if libc.fstatfs(descriptor, buffer) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_long.from_buffer(buffer).value
