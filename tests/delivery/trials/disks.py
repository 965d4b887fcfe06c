"""Files on a disk that is full, read-only, or frozen for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from contextlib import ExitStack, contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any, Final

from tests.delivery.sinks.disks import disk
from tests.delivery.trials.lake import uids_in, unknown
from tests.delivery.trials.receivers import Receiver, uid_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.delivery.sinks.base import Message
    from tests.delivery.trials.receivers import Setting

#: The longest time for which a disk stays frozen.
_LONGEST_SECONDS: Final = 120.0


class Disk(Receiver):
    """A separate disk: read-only at first, full when it is down later.

    If the setting ``is_slow``, the disk can be frozen: then its writers wait.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.folder = setting.folder / "disk"
        self.folder.mkdir()
        self._ballast = self.folder / "ballast"
        self._mounted = ExitStack()
        self._thaw: Timer | None = None
        if setting.is_slow:
            self._mounted.enter_context(freezable(setting.folder / "image", self.folder))
        else:
            self._mounted.enter_context(disk(self.folder, size="128m", options="ro"))

    async def start(self) -> None:
        if not self._setting.is_slow:
            _run("mount", "-o", "remount,rw", self.folder)
        self._ballast.unlink(missing_ok=True)

    async def kill(self) -> None:
        """Fill the disk, to the last byte."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            room = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - (1 << 20))
            while True:
                file.write(b"x" * 4096)

    async def end(self) -> None:
        await self.answer_slowly(0)
        await asyncio.to_thread(self._mounted.close)

    async def stop_answering(self) -> None:
        # A writer in the event loop would block the thaw.
        self._thaw = Timer(_LONGEST_SECONDS, self._thaw_now)
        self._thaw.start()
        _run("fsfreeze", "--freeze", self.folder)

    async def answer_slowly(self, seconds: float) -> None:
        """Thaw the disk; it can't be slow in another way."""
        del seconds
        thaw, self._thaw = self._thaw, None
        if thaw is not None:
            thaw.cancel()
            await asyncio.to_thread(thaw.join)
            self._thaw_now()

    def _thaw_now(self) -> None:
        # It may have been thawed before.
        subprocess.run(["fsfreeze", "--unfreeze", self.folder], check=False, capture_output=True)


class File(Disk):
    """A file of JSON Lines."""

    @property
    def table(self) -> dict[str, Any]:
        return {"type": "file", "path": str(self.folder / "events.jsonl")}

    async def uids(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [uid_of(line) for line in self._path.read_bytes().split(b"\n")[:-1]]
        return []

    @property
    def _path(self) -> Path:
        return self.folder / "events.jsonl"


class Directory(Disk):
    """Files of Parquet, in a directory."""

    refusal_text = "no class_uid that there are columns for"

    @property
    def table(self) -> dict[str, Any]:
        return {
            "type": "parquet",
            "directory": str(self.folder / "lake"),
            "region": "eu-west-1",
            **({"timeout_seconds": 2.0} if self._setting.is_slow else {}),
        }

    async def uids(self) -> list[str]:
        """Return the uids of the files, in the order of their completion."""
        found = [(each.stat(), each) for each in self.folder.rglob("*.parquet")]
        found.sort(key=lambda each: (each[0].st_mtime_ns, each[0].st_ino))
        return [uid for _, path in found for uid in uids_in(path.read_bytes())]

    def poisoned(self, number: int) -> Message:
        return unknown(number)


@contextmanager
def freezable(image: Path, folder: Path) -> Iterator[None]:
    """Mount a disk whose file system can be frozen; one in memory can't."""
    image.touch()
    os.truncate(image, 16 << 20)
    _run("mkfs.ext4", "-q", "-O", "^has_journal", image)
    _run("mount", "-o", "loop", image, folder)
    try:
        yield
    finally:
        _run("umount", folder)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True)
