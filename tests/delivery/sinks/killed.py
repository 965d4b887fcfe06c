"""File sink that is killed at each of its system calls, in one run for each call.

The argument of this program is a folder. It exits with a traceback if an event is missing or
duplicated.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.delivery.sinks.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

_CALLS: Final = ("open", "write", "rename", "unlink", "ftruncate", "fsync", "fdatasync", "close")
_BATCHES: Final = 5
_ROTATION: Final = Rotation(full_bytes=700, compress=True)


class Killer:
    """Kill of this process at a numbered system call: before it, or halfway through a write."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._calls = itertools.count(1)
        self._lock = threading.Lock()

    def install(self) -> None:
        for name in _CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                if next(self._calls) == self._number:
                    if call.__name__ == "write":
                        call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted


def batch(number: int) -> list[Message]:
    return [
        Message(uid=f"{number}-{each}", line=b'{"event":"%d-%d","pad":"%s"}' % (number, each, pad))
        for each, pad in enumerate([b"x" * 60] * 4)
    ]


async def deliver(path: Path, acknowledge: Callable[[int], object]) -> None:
    async with File(path=path, rotation=_ROTATION) as sink:
        for number in range(_BATCHES):
            await sink.deliver(batch(number))
            acknowledge(number)
        await wait_until_finished(path.parent)


async def wait_until_finished(folder: Path) -> None:
    """Wait until the sink has finished the work that a crash left."""
    async with asyncio.timeout(120):
        while unfinished_files(folder):  # noqa: ASYNC110 - the thread sends no event
            await asyncio.sleep(0.001)


def unfinished_files(folder: Path) -> list[Path]:
    return [*folder.glob("events-*.jsonl"), *folder.glob(".*")]


def deliver_until_killed(folder: Path, number: int) -> list[int] | None:
    """Return the batches acknowledged before call ``number``, or None without such a call."""
    reader, writer = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        Killer(number).install()
        asyncio.run(deliver(folder / "events.jsonl", lambda each: write(writer, bytes([each]))))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as numbers:  # noqa: PTH123 - a descriptor
        acknowledged = list(numbers.read())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return acknowledged
    assert status == 0, status
    return None


def read_lines(folder: Path) -> Counter[bytes]:
    lines: Counter[bytes] = Counter()
    for path in folder.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert content.endswith(b"\n") or not content, path
        lines.update(content.splitlines())
    return lines


async def reopen(path: Path) -> None:
    async with File(path=path, rotation=_ROTATION):
        await wait_until_finished(path.parent)


def main() -> None:
    top = Path(sys.argv[1])
    all_lines = {each.line for number in range(_BATCHES) for each in batch(number)}
    for number in itertools.count(1):
        folder = top / str(number)
        acknowledged = deliver_until_killed(folder, number)
        if acknowledged is None:
            break
        folder.mkdir(exist_ok=True)
        asyncio.run(reopen(folder / "events.jsonl"))
        lines = read_lines(folder)
        expected = {each.line for one in acknowledged for each in batch(one)}
        assert expected <= lines.keys() <= all_lines, number
        assert set(lines.values()) <= {1}, number
    print(number - 1, "kills")  # noqa: T201 - a program


if __name__ == "__main__":
    main()
