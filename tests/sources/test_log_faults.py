"""Tests of the kernel log, the journal and files that are absent, damaged or unreadable."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import OcsfNftError, SourceError, UnsupportedError
from ocsf_nft.record import Reject
from ocsf_nft.sources import kmsg
from ocsf_nft.sources.boot import boot_id
from ocsf_nft.sources.journal import Journal, command
from ocsf_nft.sources.journal import library as journal_library
from ocsf_nft.sources.journal.command import CommandReader
from ocsf_nft.sources.journal.kernel import KernelEntryParser
from ocsf_nft.sources.journal.library import LibraryReader
from ocsf_nft.sources.kernel_message import PrefixFilter
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.replay import Replay
from tests.descriptors import no_more_descriptors, open_descriptors
from tests.sources.replaying import MESSAGE, flat, reader
from tests.sources.test_live_parts import entry

if TYPE_CHECKING:
    from collections.abc import Iterator

_OVERLONG = 3 << 20
_JOURNAL_HEADER = b"LPKSHHRH" + bytes(8)


async def test_log_source_raises_if_it_is_not_open() -> None:
    for source, sentence in (
        (Kmsg(), "the kernel log source is not open: enter its context first"),
        (Journal(), "the journal source is not open: enter its context first"),
    ):
        with pytest.raises(SourceError, match=sentence):
            await anext(source.batches())
    with pytest.raises(SourceError, match="journalctl is not running: enter the source's context"):
        await CommandReader(None, PrefixFilter()).read(0)


async def test_kernel_log_that_can_not_be_read_raises_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, folder = tmp_path / "empty", tmp_path / "folder"
    empty.touch()
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    before = open_descriptors(collect=True)
    cases: tuple[tuple[str, type[OcsfNftError], str], ...] = (
        ("absent", UnsupportedError, "there is no {}: give the container the device, or read by"),
        ("socket", SourceError, "{} can't be opened: No such device or address"),
        ("empty", SourceError, "{} ended: it is not the kernel's log"),
        ("folder", SourceError, "reading {} failed: Is a directory"),
    )
    for name, kind, sentence in cases:
        device = str(tmp_path / name)
        monkeypatch.setattr(kmsg, "_DEVICE", device)
        with pytest.raises(kind) as caught:
            await Kmsg().__aenter__()
        assert str(caught.value).startswith(sentence.format(device))
        assert open_descriptors() == before, name


async def test_kernel_log_record_in_an_unknown_format_is_malformed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kmsg"
    os.mkfifo(device)
    monkeypatch.setattr(kmsg, "_DEVICE", str(device))
    with device.open("r+b", buffering=0) as log:
        async with Kmsg() as source:
            log.write(b"no record " + b"x" * 2000)
            batch = await anext(source.batches())
    (reject,) = batch.rejected
    assert (reject.kind, reject.reason) == ("malformed", f"not in the form of {device}")
    assert reject.line == "no record " + "x" * 1014
    assert (batch.records, batch.gaps, batch.cursor) == ((), (), None)


def test_boot_id_that_can_not_be_read_raises_with_a_hint_to_procfs() -> None:
    with (
        pytest.raises(UnsupportedError, match=r"\(Too many open files\): mount procfs at /proc"),
        no_more_descriptors(),
    ):
        boot_id()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that every user may list."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.kernel
def test_journal_files_without_permission_raise_with_their_path(open_folder: Path) -> None:
    (open_folder / "a.journal").symlink_to("absent")
    denied = open_folder / "b.journal"
    denied.write_bytes(_JOURNAL_HEADER)
    denied.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(UnsupportedError, match=rf"reading {denied} is not permitted: run as"):
            journal_library.samples(open_folder)
        os.seteuid(0)
        readable = open_folder / "c.journal"
        readable.write_bytes(_JOURNAL_HEADER)
        os.seteuid(65534)
        assert journal_library.samples(open_folder) == [readable]
    finally:
        os.seteuid(0)


def test_journal_without_systemd_python_is_read_by_journalctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal_library.available(tmp_path)
    monkeypatch.setitem(sys.modules, "systemd", None)
    assert not journal_library.available(tmp_path)


async def test_journal_that_libsystemd_can_not_read_raises_with_the_cause(tmp_path: Path) -> None:
    reading = LibraryReader(tmp_path / "none", PrefixFilter())
    with pytest.raises(SourceError, match=r"^reading the journal failed: No such file or dir"):
        await reading.open(None)
    reading = LibraryReader(tmp_path, PrefixFilter())
    await reading.open(None)
    reading._reader.close()
    with pytest.raises(SourceError, match=r"^reading the journal failed: Invalid argument$"):
        await reading.read(None)


async def test_journalctl_that_is_absent_or_fails_raises_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = CommandReader(tmp_path / "none", PrefixFilter())
    with pytest.raises(SourceError, match=r"^journalctl failed: .*none"):
        await reading.open(None)
    monkeypatch.setattr(command, "_TRUSTED_PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"can't be read: install systemd-python \("):
        await reading.open(None)


def test_journalctl_line_without_an_entry_is_quoted_in_the_error() -> None:
    no_text = b'{"__CURSOR":6,"__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"1"}'
    no_time = b'{"__CURSOR":"c","__REALTIME_TIMESTAMP":"x"}'
    for line in (b"no json", b"[]", b"{}", no_time, no_text):
        with pytest.raises(
            SourceError, match='journalctl wrote a line that is not a journal entry: "'
        ):
            command._entry(line)


def test_machine_id_is_read_or_raises_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "machine-id"
    monkeypatch.setattr(command, "_MACHINE_ID", file)
    with pytest.raises(SourceError, match=r"^the machine id, .* can't be read: .*No such file"):
        command._machine_id()
    file.write_text("0123456789abcdef\n")
    assert command._machine_id() == "0123456789abcdef"
    file.write_bytes(b"\xff")
    with pytest.raises(SourceError, match=r"^the machine id, .* can't be read: "):
        command._machine_id()


def test_journald_notice_without_a_number_gives_no_gap() -> None:
    parser = KernelEntryParser(PrefixFilter())
    for message in (b"Missed kernel messages", b"Missed x kernel messages", b"started"):
        assert parser.parse(entry(transport=b"driver", message=message), received_ns=1) is None


def test_overlong_line_is_rejected_only_in_the_form_of_a_record() -> None:
    for end in (b"", b"\n"):
        for start in (b"x", MESSAGE.encode()):
            reading = reader()
            found = flat(reading.batches([start, b"x" * _OVERLONG, end]))
            is_candidate = start == MESSAGE.encode()
            assert [item.kind for item in found if isinstance(item, Reject)] == [
                "malformed"
            ] * is_candidate
            assert (reading.tally.lines, reading.tally.skipped) == (1, not is_candidate)
            if is_candidate:
                assert isinstance(found[0], Reject)
                assert found[0].reason == "the line is longer than a log line can be"
                assert found[0].line == (MESSAGE + "x" * 1024)[:1024]


async def test_replay_file_that_can_not_be_opened_raises_with_the_cause(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    async with Replay([tmp_path / "socket"]) as source:
        with pytest.raises(SourceError, match="socket can't be read: No such device or address"):
            await anext(source.batches())
