"""Journal reader that runs journalctl, for hosts where Python can't use libsystemd.

journalctl prints a new entry 0.2 s late on average. The reader that uses libsystemd is faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import orjson

from ocsf_nft.errors import SourceError, UnsupportedError
from ocsf_nft.quoted import quoted
from ocsf_nft.sources.journal.kernel import MISSED_ID, Chunk, KernelEntry, message_filter

if TYPE_CHECKING:
    from ocsf_nft.sources.kernel_message import PrefixFilter

#: Only folders where root alone installs programs.
_TRUSTED_PATH: Final = "/usr/bin:/bin"
_MACHINE_ID: Final = Path("/etc/machine-id")
_FIELDS: Final = "MESSAGE,_TRANSPORT,SYSLOG_FACILITY,_SOURCE_MONOTONIC_TIMESTAMP"
_LINE_BYTES: Final = 1 << 20
_CHUNK_ENTRIES: Final = 1024
_STDERR_BYTES: Final = 300


class CommandReader:
    """Reader of the systemd journal that runs ``journalctl --follow`` and parses its output."""

    def __init__(self, directory: Path | None, prefix_filter: PrefixFilter) -> None:
        self._directory = directory
        self._is_relevant = message_filter(prefix_filter)
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None
        self._resume: str | None = None

    async def open(self, cursor: str | None) -> str | None:
        """Start journalctl, to read entries after ``cursor``; None means after the newest entry.

        Return the cursor after which reading begins; None if the journal has no entry yet. Raises
        UnsupportedError if journalctl is not installed, SourceError if journalctl fails.
        """
        self._resume = await self._last_cursor() if cursor is None else cursor
        position = () if self._resume is None else (f"--cursor={self._resume}",)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = await self._start(self._errors, "--follow", "--no-tail", *position)
        return self._resume

    async def close(self) -> None:
        """Stop journalctl and wait for its exit."""
        if self._process is not None:
            await _stop(self._process)
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for new entries, at most ``timeout_s`` seconds; None means without limit.

        The result has no entries if none arrives in that time. Raises SourceError if journalctl
        exits.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise SourceError("journalctl is not running: enter the source's context first")
        entries: list[KernelEntry] = []
        cursor: str | None = None
        cursor_is_missing = False
        for _ in range(_CHUNK_ENTRIES):
            # Wait for the first line only: lines that are already buffered need no waiting.
            entry = await self._line(process.stdout, timeout_s if cursor is None else 0.001)
            if entry is None:
                break
            cursor = entry.cursor
            if self._resume is not None:
                # The first entry is the cursor's own or, if that was deleted, the next one.
                cursor_is_missing = not _same_entry(cursor, self._resume)
                self._resume = None
                if not cursor_is_missing:
                    continue
            if self._is_relevant(entry.message):
                entries.append(entry)
        return Chunk(tuple(entries), cursor, cursor_is_missing=cursor_is_missing)

    async def _line(
        self, stream: asyncio.StreamReader, timeout_s: float | None
    ) -> KernelEntry | None:
        try:
            async with asyncio.timeout(timeout_s):
                line = await stream.readline()
        except TimeoutError:
            return None
        except ValueError as error:
            raise SourceError("journalctl wrote a line of more than a megabyte") from error
        if not line.endswith(b"\n"):
            raise SourceError(
                f"journalctl ended unexpectedly: {_error_output(self._errors) or 'it was killed'}"
            )
        return _entry(line)

    async def _last_cursor(self) -> str | None:
        with tempfile.TemporaryFile() as errors:
            process = await self._start(errors, "--lines=1")
            try:
                line, _ = await process.communicate()
            finally:
                await _stop(process)
            if output := _error_output(errors):
                raise SourceError(f"journalctl failed: {output}")
        return _entry(line).cursor if line else None

    async def _start(self, errors: IO[bytes], *position: str) -> asyncio.subprocess.Process:
        binary = shutil.which("journalctl", path=_TRUSTED_PATH)
        if binary is None:
            raise UnsupportedError(
                "the journal can't be read: install systemd-python (the extra 'journal') "
                "or journalctl"
            )
        # --follow alone shows the last boot only, and ends without one (systemd 251 to 257, where
        # --boot=all doesn't help); with --merge it shows all boots, of all machines.
        folder = () if self._directory is None else (f"--directory={self._directory}",)
        machine = () if folder else (f"_MACHINE_ID={await asyncio.to_thread(_machine_id)}",)
        return await asyncio.create_subprocess_exec(
            binary,
            *("--output=json", "--all", "--quiet", "--no-pager", f"--output-fields={_FIELDS}"),
            "--merge",
            *folder,
            *position,
            *(*machine, "_TRANSPORT=kernel"),
            "+",
            *(*machine, "_TRANSPORT=driver", f"MESSAGE_ID={MISSED_ID}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_LINE_BYTES,
            env={"LC_ALL": "C.UTF-8"},
        )


def _machine_id() -> str:
    try:
        return _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise SourceError(
            f"the machine id, which selects the journal to read, can't be read: {reason}"
        ) from error


def _error_output(errors: IO[bytes] | None) -> str:
    if errors is None:
        return ""
    errors.seek(0)
    return " ".join(errors.read(_STDERR_BYTES).decode("utf-8", "replace").split())


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has exited by itself
        process.kill()
    # Reading to the end closes the pipe; waiting reaps the child.
    await asyncio.shield(process.communicate())


def _entry(line: bytes) -> KernelEntry:
    try:
        fields = orjson.loads(line)
        cursor = fields["__CURSOR"]
        if not isinstance(cursor, str):
            raise TypeError("the cursor is no text")  # noqa: TRY301 - as for a missing field
        return KernelEntry(
            cursor=cursor,
            boot=str(fields.get("_BOOT_ID", "")),
            realtime_us=int(fields["__REALTIME_TIMESTAMP"]),
            monotonic_us=int(fields["__MONOTONIC_TIMESTAMP"]),
            message=_bytes(fields.get("MESSAGE")) or b"",
            transport=_bytes(fields.get("_TRANSPORT")),
            facility=_bytes(fields.get("SYSLOG_FACILITY")),
            source_us=_bytes(fields.get("_SOURCE_MONOTONIC_TIMESTAMP")),
        )
    except (ValueError, TypeError, KeyError) as error:
        text = line[:200].decode(errors="surrogateescape")
        raise SourceError(
            f"journalctl wrote a line that is not a journal entry: {quoted(text)}"
        ) from error


def _bytes(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    # A value that is not UTF-8 is a list of byte values.
    if isinstance(value, list) and all(isinstance(byte, int) for byte in value):
        return bytes(value)
    return None  # the field is missing, or the list has the values of a repeated field


def _same_entry(one: str, other: str) -> bool:
    """Return True if two cursors refer to the same entry, as sd_journal_test_cursor does."""
    parts = [dict(part.partition("=")[::2] for part in text.split(";")) for text in (one, other)]
    return all(parts[0].get(key) == parts[1].get(key) for key in ("s", "i", "b", "m", "t", "x"))
