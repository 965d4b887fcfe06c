"""A file sink that is killed at each of its calls of the system, one after the other.

Run as a program with a folder. It ends with a traceback when an event is lost or doubled.
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

from ocsf_nft.delivery.envelope import Message
from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.delivery.sinks.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

_CALLS: Final = ("open", "write", "rename", "unlink", "ftruncate", "fsync", "fdatasync", "close")
_BATCHES: Final = 5
_ROTATION: Final = Rotation(full_bytes=700, compress=True)


class Killer:
    """Kills this process at the call of a number: before it, or in the middle of a write."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._calls = itertools.count(1)
        self._turn = threading.Lock()

    def watch(self) -> None:
        for name in _CALLS:
            setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **options: Any) -> Any:
            with self._turn:
                if next(self._calls) == self._number:
                    if call.__name__ == "write":
                        call(given[0], given[1][: len(given[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **options)

        return watched


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
        await packed(path.parent)


async def packed(folder: Path) -> None:
    """Wait until what a crash left is finished."""
    async with asyncio.timeout(20):
        while half_done(folder):  # noqa: ASYNC110 - a thread tells nothing of its work
            await asyncio.sleep(0.001)


def half_done(folder: Path) -> list[Path]:
    return [*folder.glob("events-*.jsonl"), *folder.glob(".*")]


def killed(folder: Path, number: int) -> list[int] | None:
    """The batches that were acknowledged before the call of a number, None when there is none."""
    reader, writer = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        Killer(number).watch()
        asyncio.run(deliver(folder / "events.jsonl", lambda each: write(writer, bytes([each]))))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:  # noqa: PTH123 - a descriptor
        acknowledged = list(told.read())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return acknowledged
    assert status == 0, status
    return None


def found(folder: Path) -> Counter[bytes]:
    lines: Counter[bytes] = Counter()
    for path in folder.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert content.endswith(b"\n") or not content, path
        lines.update(content.splitlines())
    return lines


async def opened_again(path: Path) -> None:
    async with File(path=path, rotation=_ROTATION):
        await packed(path.parent)


def main() -> None:
    top = Path(sys.argv[1])
    everything = {each.line for number in range(_BATCHES) for each in batch(number)}
    for number in itertools.count(1):
        folder = top / str(number)
        acknowledged = killed(folder, number)
        if acknowledged is None:
            break
        folder.mkdir(exist_ok=True)
        asyncio.run(opened_again(folder / "events.jsonl"))
        lines = found(folder)
        kept = {each.line for one in acknowledged for each in batch(one)}
        assert kept <= lines.keys() <= everything, number
        assert set(lines.values()) <= {1}, number
    print(number - 1, "kills")  # noqa: T201 - a program


if __name__ == "__main__":
    main()
