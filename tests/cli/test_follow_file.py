from __future__ import annotations

import os
import threading
import time
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.cli import follow_file
from ocsf_nft.cli.follow_file import LINE_BYTES, TOO_LONG, GrowingFile, lines_of_pipe, opened
from ocsf_nft.errors import AbsentError
from tests.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NOW = os.O_RDONLY | os.O_CLOEXEC


def flat(batches: Iterable[list[bytes]]) -> list[bytes]:
    return list(chain.from_iterable(batches))


def file_of(path: Path, content: bytes) -> GrowingFile:
    path.write_bytes(content)
    return GrowingFile(os.open(path, _NOW), path)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def last(lines: list[bytes], number: int) -> list[bytes]:
    return lines[-number:] if number else []


@given(content=st.binary(max_size=200), number=st.integers(0, 12), block=st.integers(1, 64))
def test_the_last_lines_are_those_of_tail(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, number: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("tail") / "events.jsonl"
    *whole, unfinished = content.split(b"\n")
    lines = [*whole, unfinished] if unfinished else whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow_file, "_BLOCK_BYTES", block)
        file = file_of(path, content)
        assert flat(file.last_lines(number, growing=False)) == last(lines, number)
        assert flat(file.last_lines(number, growing=True)) == last(whole, number)
        append(path, b"\n")
        assert flat(file.new_lines()) == [unfinished]


def test_only_the_end_of_a_huge_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.seek(10 << 30)
        file.write(b"\na\nb\n")
    read = 0
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal read
        data = pread(descriptor, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    grown = GrowingFile(os.open(path, _NOW), path)
    assert flat(grown.last_lines(2, growing=True)) == [b"a", b"b"]
    assert read < 1 << 17


@pytest.mark.parametrize("size", [LINE_BYTES, LINE_BYTES + 1, 5 * LINE_BYTES + 7])
def test_too_long_line_is_skipped(tmp_path: Path, size: int) -> None:
    content = b"a\n" + b"x" * size + b"\nb\n"
    path = tmp_path / "events.jsonl"
    file = file_of(path, content)
    assert flat(file.last_lines(3, growing=True)) == [b"a", TOO_LONG, b"b"]
    assert flat(file.last_lines(2, growing=False)) == [TOO_LONG, b"b"]
    append(path, b"x" * size)
    assert flat(file.last_lines(1, growing=False)) == [TOO_LONG]
    assert flat(file.last_lines(1, growing=True)) == [b"b"]
    assert flat(file.new_lines()) == []
    append(path, b"y\nc\n")
    assert flat(file.new_lines()) == [TOO_LONG, b"c"]


def test_longest_permitted_line_is_shown(tmp_path: Path) -> None:
    line = b"x" * (LINE_BYTES - 1)
    file = file_of(tmp_path / "events.jsonl", line + b"\n")
    assert flat(file.last_lines(1, growing=True)) == [line]


def test_incomplete_line_is_shown_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = file_of(path, b"a\nb")
    assert flat(file.last_lines(5, growing=True)) == [b"a"]
    append(path, b"c")
    assert flat(file.new_lines()) == []
    append(path, b"d\ne\nf")
    assert flat(file.new_lines()) == [b"bcd", b"e"]


def test_incomplete_line_that_is_removed_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = file_of(path, b"a\ntorn")
    assert flat(file.last_lines(5, growing=True)) == [b"a"]
    os.truncate(path, 2)
    assert flat(file.new_lines()) == []
    append(path, b"whole\n")
    assert flat(file.new_lines()) == [b"whole"]


def test_renamed_file_is_closed_when_it_grows_no_more(tmp_path: Path) -> None:
    path, rotated = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    file = file_of(path, b"a\n")
    before = open_descriptors(collect=True)
    assert flat(file.last_lines(5, growing=True)) == [b"a"]
    path.rename(rotated)
    append(rotated, b"b\n")
    assert flat(file.new_lines()) == [b"b"]
    assert flat(file.new_lines()) == []
    path.write_bytes(b"d\n")
    append(rotated, b"c\nunfinished")
    assert flat(file.new_lines()) == [b"c"]
    assert flat(file.new_lines()) == [b"unfinished", b"d"]
    append(path, b"e\n")
    append(rotated, b"never\n")
    assert flat(file.new_lines()) == [b"e"]
    assert open_descriptors() == before


def test_renamed_file_is_read_as_long_as_it_grows(tmp_path: Path) -> None:
    path, rotated = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    file = file_of(path, b"")
    path.rename(rotated)
    path.write_bytes(b"new\n")
    for line in (b"a", b"b", b"c"):
        append(rotated, line + b"\n")
        assert flat(file.new_lines()) == [line]
    assert flat(file.new_lines()) == [b"new"]


def test_file_with_its_name_restored_is_the_same_file(tmp_path: Path) -> None:
    path, aside = tmp_path / "events.jsonl", tmp_path / "aside"
    file = file_of(path, b"a\n")
    flat(file.last_lines(5, growing=True))
    path.rename(aside)
    path.write_bytes(b"other\n")
    assert flat(file.new_lines()) == []
    aside.rename(path)
    append(path, b"b\n")
    assert flat(file.new_lines()) == [b"b"]
    assert flat(file.new_lines()) == []


@pytest.mark.parametrize("content", [b"", b"1\n", b"x" * 9000 + b"\n2\n"])
@pytest.mark.parametrize("new", [b"n\n", b"n" * 9000 + b"\nm\n", b"n" * 50_000 + b"\n"])
def test_a_file_that_was_emptied_is_read_from_its_beginning(
    tmp_path: Path, content: bytes, new: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    file = file_of(path, content + b"\n")
    flat(file.last_lines(5, growing=True))
    os.truncate(path, 0)
    append(path, new)
    assert flat(file.new_lines()) == new.split(b"\n")[:-1]


def test_file_without_a_path_is_followed_by_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"a\n")
    file = GrowingFile(os.open(path, _NOW), None)
    flat(file.last_lines(1, growing=True))
    moved = path.rename(tmp_path / "elsewhere")
    path.write_bytes(b"other\n")
    append(moved, b"b\n")
    for expected in ([b"b"], [], []):
        assert flat(file.new_lines()) == expected


def test_lines_of_a_pipe_come_as_they_are_written() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    lines = (line for batch in lines_of_pipe(reader) for line in batch)
    os.write(writer, b"a\nb")
    assert next(lines) == b"a"
    os.write(writer, b"c\n")
    assert next(lines) == b"bc"

    def rest() -> None:
        time.sleep(0.1)  # until the reader waits at an empty pipe
        with os.fdopen(writer, "wb") as file:
            file.write(b"x" * (3 * LINE_BYTES) + b"\nd\nunfinished")

    thread = threading.Thread(target=rest, daemon=True)
    thread.start()
    assert list(lines) == [TOO_LONG, b"d", b"unfinished"]
    thread.join()
    os.close(reader)


@pytest.mark.parametrize(
    ("name", "cause"), [("", "Is a directory"), ("nothing", "No such file or directory")]
)
def test_path_that_can_not_be_opened_is_one_sentence(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(AbsentError, match=f"can't be read: {cause}"):
        opened(tmp_path / name)
