from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import program_hashes
from ocsf_nft.attribution.program_hashes import ProgramHashes
from tests.attribution.living import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

FUTURE_NS = 3_600_000_000_000


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a path (O_PATH), as the link to a running program does."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def hash_of(path: Path, hashes: ProgramHashes) -> str | None:
    with opened(path) as descriptor:
        return hashes.sha256(descriptor)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the files that were read."""
    sizes: list[int] = []
    real = program_hashes._digest

    def digest(descriptor: int, size: int) -> str | None:
        sizes.append(size)
        return real(descriptor, size)

    monkeypatch.setattr(program_hashes, "_digest", digest)
    return sizes


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test's files count as unchanged for a long time."""
    monkeypatch.setattr(program_hashes, "_SETTLED_NS", -FUTURE_NS)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_hash_is_of_the_whole_content(program: Path, size: int) -> None:
    content = os.urandom(size)
    program.write_bytes(content)
    assert hash_of(program, ProgramHashes(1 << 30)) == sha256(content)


@pytest.mark.usefixtures("settled")
def test_file_is_read_once(program: Path, read_sizes: list[int]) -> None:
    hashes = ProgramHashes(1 << 30)
    assert [hash_of(program, hashes) for _ in range(3)] == [sha256(b"content")] * 3
    assert read_sizes == [7]


@pytest.mark.usefixtures("settled")
def test_changed_file_is_read_again(program: Path, read_sizes: list[int]) -> None:
    hashes = ProgramHashes(1 << 30)
    assert hash_of(program, hashes) == sha256(b"content")
    before = program.stat()
    time.sleep(0.02)
    program.write_bytes(b"another")
    # The owner can set mtime, so it proves nothing.
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_of(program, hashes) == sha256(b"another")
    assert read_sizes == [7, 7]


def test_new_file_is_read_again_because_its_times_may_not_show_a_change(
    program: Path, read_sizes: list[int]
) -> None:
    hashes = ProgramHashes(1 << 30)
    assert hash_of(program, hashes) == hash_of(program, hashes) == sha256(b"content")
    assert read_sizes == [7, 7]


@pytest.mark.usefixtures("settled")
def test_hash_is_of_the_executed_file_and_not_of_its_path(program: Path) -> None:
    hashes = ProgramHashes(1 << 30)
    with opened(program) as descriptor:
        program.unlink()
        program.write_bytes(b"another")
        assert hashes.sha256(descriptor) == sha256(b"content")
        assert hash_of(program, hashes) == sha256(b"another")


def test_too_large_file_is_not_read(program: Path, read_sizes: list[int]) -> None:
    assert hash_of(program, ProgramHashes(6)) is None
    assert read_sizes == []
    assert hash_of(program, ProgramHashes(7)) == sha256(b"content")


def test_reads_of_a_minute_are_limited(
    program: Path, read_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_hashes, "_MOST_BYTES_A_MINUTE", 15)
    hashes = ProgramHashes(1 << 30)
    assert [hash_of(program, hashes) is None for _ in range(4)] == [False, False, True, True]
    small = program.with_name("small")
    small.write_bytes(b"!")
    assert hash_of(small, hashes) == sha256(b"!")
    monkeypatch.setattr(program_hashes, "_MINUTE_NS", 0)
    hashes._minute_ends_ns = 0
    assert hash_of(program, hashes) == sha256(b"content")
    assert read_sizes == [7, 7, 1, 7]


def test_hashes_read_at_most_four_gibibytes_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 0, 59_999_999_999, 60_000_000_000])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    hashes = ProgramHashes(1 << 30)
    may = [hashes._may_read(size) for size in (4 << 30, 1, 1, 4 << 30)]
    assert may == [True, False, False, True]


@pytest.mark.parametrize(("age_ns", "is_cached"), [(3_000_000_000, False), (3_000_000_001, True)])
def test_hash_is_cached_if_no_later_change_can_have_the_same_times(
    program: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int, *, is_cached: bool
) -> None:
    changed_ns = program.stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed_ns + age_ns)
    hashes = ProgramHashes(1 << 30)
    assert hash_of(program, hashes) == sha256(b"content")
    assert bool(hashes._cache) == is_cached


@pytest.mark.usefixtures("settled")
def test_hash_cache_has_a_maximum_size(
    tmp_path: Path, read_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_hashes, "_MOST_CACHED", 2)
    hashes = ProgramHashes(1 << 30)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    for path in (paths[0], paths[1], paths[0], paths[2]):
        hash_of(path, hashes)
    assert len(hashes._cache) == 2
    assert len(read_sizes) == 3
    hash_of(paths[0], hashes)  # requested later than the other, so it was not evicted
    assert len(read_sizes) == 3
    hash_of(paths[1], hashes)
    assert len(read_sizes) == 4


@pytest.mark.parametrize("more", [b"!", b""])
def test_file_that_changes_during_the_read_has_no_hash(
    program: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    real = program_hashes._digest

    def digest(descriptor: int, size: int) -> str | None:
        result = real(descriptor, size)
        time.sleep(0.02)
        program.write_bytes(b"CONTENT" + more)
        return result

    monkeypatch.setattr(program_hashes, "_digest", digest)
    hashes = ProgramHashes(1 << 30)
    assert hash_of(program, hashes) is None
    assert not hashes._cache


def test_file_with_an_unexpected_length_has_no_hash(program: Path) -> None:
    with opened(program) as descriptor:
        before = os.fstat(descriptor)
        for content in (b"conten", b"contents"):
            program.write_bytes(content)
            assert ProgramHashes(1 << 30)._read(descriptor, before) is None
        program.write_bytes(b"content")
    for size in (0, 6, 8):
        readable = os.open(program, os.O_RDONLY)
        try:
            assert program_hashes._digest(readable, size) is None
        finally:
            os.close(readable)
    endless = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert program_hashes._digest(endless, 7) is None
    finally:
        os.close(endless)


def test_irregular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    hashes = ProgramHashes(1 << 30)
    assert hash_of(tmp_path / "fifo", hashes) is None
    assert hash_of(tmp_path, hashes) is None
    device = tmp_path / "zero"
    device.symlink_to("/dev/zero")
    assert hash_of(device, hashes) is None


def test_lease_on_a_file_does_not_block_the_read(program: Path) -> None:
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)
    lease = os.open(program, os.O_RDWR)
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        before = time.monotonic()
        assert hash_of(program, ProgramHashes(1 << 30)) is None
        assert time.monotonic() - before < 5
    finally:
        os.close(lease)
        signal.signal(signal.SIGIO, handler)


def test_file_of_a_fuse_server_has_no_hash(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(program) as descriptor:
        assert ProgramHashes(1 << 30).sha256(descriptor) is not None
        # As if the file were on FUSE.
        file_system = program_hashes._file_system(descriptor)
        monkeypatch.setattr(program_hashes, "_FUSE_SUPER_MAGIC", file_system)
        assert ProgramHashes(1 << 30).sha256(descriptor) is None


@pytest.mark.usefixtures("settled")
def test_writable_memfd_is_read_each_time(read_sizes: list[int]) -> None:
    hashes = ProgramHashes(1 << 30)
    with in_memory(b"content") as descriptor:
        assert hashes.sha256(descriptor) == hashes.sha256(descriptor) == sha256(b"content")
        assert read_sizes == [7, 7]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert hashes.sha256(descriptor) == hashes.sha256(descriptor) == sha256(b"content")
        assert read_sizes == [7, 7, 7]


@pytest.mark.usefixtures("settled")
def test_file_at_a_path_on_tmpfs_is_read_once(read_sizes: list[int]) -> None:
    hashes = ProgramHashes(1 << 30)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "program"
        path.write_bytes(b"content")
        assert hash_of(path, hashes) == hash_of(path, hashes) == sha256(b"content")
    assert read_sizes == [7]


@pytest.mark.usefixtures("settled")
def test_deleted_file_is_read_once(program: Path, read_sizes: list[int]) -> None:
    hashes = ProgramHashes(1 << 30)
    with opened(program) as descriptor:
        program.unlink()
        assert hashes.sha256(descriptor) == hashes.sha256(descriptor) == sha256(b"content")
    assert read_sizes == [7]


def test_file_that_the_kernel_cannot_describe_is_an_error(program: Path) -> None:
    descriptor = os.open(program, os.O_PATH)  # such a descriptor shows no seals
    try:
        program.unlink()
        with pytest.raises(OSError, match="Bad file descriptor"):
            program_hashes._may_change_unnoticed(descriptor, os.fstat(descriptor))
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        program_hashes._file_system(-1)


def test_hash_closes_all_descriptors(program: Path) -> None:
    with opened(program) as descriptor:
        before = descriptors()
        ProgramHashes(1 << 30).sha256(descriptor)
        assert descriptors() == before
