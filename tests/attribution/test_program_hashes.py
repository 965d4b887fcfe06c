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
from ocsf_nft.attribution.program_hashes import Hashes
from tests.attribution.living import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

FUTURE_NS = 3_600_000_000_000


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """As a program is, by the link to it."""
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


def of(path: Path, asked: Hashes) -> str | None:
    with opened(path) as descriptor:
        return asked.sha256(descriptor)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that were read."""
    sizes: list[int] = []
    real = program_hashes._digest

    def digest(descriptor: int, size: int) -> str | None:
        sizes.append(size)
        return real(descriptor, size)

    monkeypatch.setattr(program_hashes, "_digest", digest)
    return sizes


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As though the test's files had been there for long."""
    monkeypatch.setattr(program_hashes, "_SETTLED_NS", -FUTURE_NS)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_it_is_of_the_whole_content(program: Path, size: int) -> None:
    content = os.urandom(size)
    program.write_bytes(content)
    assert of(program, Hashes()) == sha256(content)


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once(program: Path, read: list[int]) -> None:
    asked = Hashes()
    assert [of(program, asked) for _ in range(3)] == [sha256(b"content")] * 3
    assert read == [7]


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_changed_is_read_again(program: Path, read: list[int]) -> None:
    asked = Hashes()
    assert of(program, asked) == sha256(b"content")
    before = program.stat()
    time.sleep(0.02)
    program.write_bytes(b"another")
    # What its owner can set says nothing.
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert of(program, asked) == sha256(b"another")
    assert read == [7, 7]


def test_a_file_that_is_new_may_change_within_a_tick_of_the_clock(
    program: Path, read: list[int]
) -> None:
    asked = Hashes()
    assert of(program, asked) == of(program, asked) == sha256(b"content")
    assert read == [7, 7]


@pytest.mark.usefixtures("settled")
def test_it_is_the_file_that_runs_and_not_what_is_at_its_path(program: Path) -> None:
    asked = Hashes()
    with opened(program) as descriptor:
        program.unlink()
        program.write_bytes(b"another")
        assert asked.sha256(descriptor) == sha256(b"content")
        assert of(program, asked) == sha256(b"another")


def test_a_file_that_is_too_large_is_not_read(program: Path, read: list[int]) -> None:
    assert of(program, Hashes(most_bytes=6)) is None
    assert read == []
    assert of(program, Hashes(most_bytes=7)) == sha256(b"content")


def test_in_a_minute_no_more_is_read_than_should_be(
    program: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hashes(most_bytes_a_minute=15)
    assert [of(program, asked) is None for _ in range(4)] == [False, False, True, True]
    small = program.with_name("small")
    small.write_bytes(b"!")
    assert of(small, asked) == sha256(b"!")
    monkeypatch.setattr(program_hashes, "_MINUTE_NS", 0)
    asked._minute_ends_ns = 0
    assert of(program, asked) == sha256(b"content")
    assert read == [7, 7, 1, 7]


def test_hashes_read_four_gibibytes_a_minute_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 0, 59_999_999_999, 60_000_000_000])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    asked = Hashes()
    may = [asked._may_read(size) for size in (4 << 30, 1, 1, 4 << 30)]
    assert may == [True, False, False, True]


@pytest.mark.parametrize(("age_ns", "is_kept"), [(3_000_000_000, False), (3_000_000_001, True)])
def test_hash_of_a_file_is_kept_when_no_later_change_can_have_the_same_times(
    program: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int, *, is_kept: bool
) -> None:
    changed_ns = program.stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed_ns + age_ns)
    asked = Hashes()
    assert of(program, asked) == sha256(b"content")
    assert bool(asked._kept) == is_kept


@pytest.mark.usefixtures("settled")
def test_no_more_is_kept_than_should_be(tmp_path: Path, read: list[int]) -> None:
    asked = Hashes(most_entries=2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    for path in (paths[0], paths[1], paths[0], paths[2]):
        of(path, asked)
    assert len(asked._kept) == 2
    assert len(read) == 3
    of(paths[0], asked)  # asked for since, so it stayed
    assert len(read) == 3
    of(paths[1], asked)
    assert len(read) == 4


@pytest.mark.parametrize("more", [b"!", b""])
def test_a_file_that_changes_meanwhile_has_none(
    program: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    real = program_hashes._digest

    def digest(descriptor: int, size: int) -> str | None:
        result = real(descriptor, size)
        time.sleep(0.02)
        program.write_bytes(b"CONTENT" + more)
        return result

    monkeypatch.setattr(program_hashes, "_digest", digest)
    asked = Hashes()
    assert of(program, asked) is None
    assert not asked._kept


def test_a_file_of_another_length_than_it_should_be_has_none(program: Path) -> None:
    with opened(program) as descriptor:
        key = program_hashes._key(os.fstat(descriptor))
        assert Hashes()._hashed(descriptor, key._replace(size=6)) is None
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


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    asked = Hashes()
    assert of(tmp_path / "fifo", asked) is None
    assert of(tmp_path, asked) is None
    device = tmp_path / "zero"
    device.symlink_to("/dev/zero")
    assert of(device, asked) is None


def test_a_lease_keeps_nobody_waiting(program: Path) -> None:
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)
    lease = os.open(program, os.O_RDWR)
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        before = time.monotonic()
        assert of(program, Hashes()) is None
        assert time.monotonic() - before < 5
    finally:
        os.close(lease)
        signal.signal(signal.SIGIO, handler)


def test_what_a_process_serves_has_none(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(program) as descriptor:
        assert Hashes().sha256(descriptor) is not None
        # As though what it is on was that.
        monkeypatch.setattr(program_hashes, "_FUSE_SUPER_MAGIC", program_hashes._kind(descriptor))
        assert Hashes().sha256(descriptor) is None


@pytest.mark.usefixtures("settled")
def test_what_may_be_written_to_in_memory_is_read_each_time(read: list[int]) -> None:
    asked = Hashes()
    with in_memory(b"content") as descriptor:
        assert asked.sha256(descriptor) == asked.sha256(descriptor) == sha256(b"content")
        assert read == [7, 7]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert asked.sha256(descriptor) == asked.sha256(descriptor) == sha256(b"content")
        assert read == [7, 7, 7]


@pytest.mark.usefixtures("settled")
def test_a_file_in_memory_that_is_at_a_path_is_read_once(read: list[int]) -> None:
    asked = Hashes()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "program"
        path.write_bytes(b"content")
        assert of(path, asked) == of(path, asked) == sha256(b"content")
    assert read == [7]


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_deleted_is_read_once(program: Path, read: list[int]) -> None:
    asked = Hashes()
    with opened(program) as descriptor:
        program.unlink()
        assert asked.sha256(descriptor) == asked.sha256(descriptor) == sha256(b"content")
    assert read == [7]


def test_file_that_the_kernel_cannot_describe_is_an_error(program: Path) -> None:
    descriptor = os.open(program, os.O_PATH)  # one by which a file has no seals
    try:
        program.unlink()
        with pytest.raises(OSError, match="Bad file descriptor"):
            program_hashes._is_loose(descriptor, os.fstat(descriptor))
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        program_hashes._kind(-1)


def test_nothing_stays_open(program: Path) -> None:
    with opened(program) as descriptor:
        before = descriptors()
        Hashes().sha256(descriptor)
        assert descriptors() == before
