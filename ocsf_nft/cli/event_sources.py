"""Sources of events for a command: a running service, the stores of runs, or files."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.cli import service_access
from ocsf_nft.cli.stored_events import ServiceSelection, StoreSelection
from ocsf_nft.errors import AbsentError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from ocsf_nft.cli.service_access import Access, Files, RunningService
    from ocsf_nft.cli.stored_events import Selection

    #: Takes the lines of all events; returns True if it has used one.
    Consumer: TypeAlias = Callable[[Iterable[bytes]], bool]
    #: Gives the lines of all events to a consumer; can be called more than once.
    EventReader: TypeAlias = Callable[[Consumer], None]


_BLOCK_BYTES: Final = 1 << 16


class _File(NamedTuple):
    """Open regular file of events, maybe compressed, and the offset of its begin."""

    descriptor: int
    begin: int
    #: Name of the file in errors.
    name: str


@contextlib.contextmanager
def event_reader(
    paths: Sequence[str], control: Path | None, state_dir: Path | None, config: Path | None
) -> Iterator[EventReader]:
    """Yield a function that reads the events of files, or those that a service has stored.

    A path ``-`` is standard input. Files may be compressed. Without ``paths``, the other arguments
    select the service or the stores, as for the command `events`. Raises AbsentError if a file
    can't be read, UsageError if both are given. The function raises SourceError if a compressed
    file is damaged.
    """
    if not paths:
        source = service_access.access(control, state_dir, config)
        with source.reading_files():
            yield lambda consume: _read_stored(source, consume)
        return
    if (control, state_dir, config) != (None, None, None):
        raise UsageError(
            "--input can't be combined with --control, --state-dir or --config: give one of them"
        )
    with contextlib.ExitStack() as stack:
        files = [_seekable(path, stack) for path in paths]
        yield lambda consume: _read_files(files, consume)


def _read_stored(source: Access, consume: Consumer) -> None:
    with selection(source, {}, lambda _: True, consume) as found:
        found.last(None)


def _read_files(files: Sequence[_File], consume: Consumer) -> None:
    from ocsf_nft.cli.follow_file import lines_of
    from ocsf_nft.conversion.compressed import decompressed

    for descriptor, begin, name in files:
        os.lseek(descriptor, begin, os.SEEK_SET)
        with open(descriptor, "rb", closefd=False) as file:
            read = partial(decompressed(file, name).read1, _BLOCK_BYTES)
            consume(line for lines in lines_of(iter(read, b"")) for line in lines)


def _seekable(path: str, stack: contextlib.ExitStack) -> _File:
    """Open a file that can be read twice. A pipe is copied to an unnamed file first."""
    from ocsf_nft.cli.follow_file import chunks_of_pipe, opened

    if path == "-" and sys.stdin.isatty():
        raise UsageError("pipe events into it, or name a file of events: --input PATH")
    name = "standard input" if path == "-" else path
    descriptor = os.dup(sys.stdin.fileno()) if path == "-" else opened(Path(path))
    stack.callback(os.close, descriptor)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return _File(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR), name)
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    copy.writelines(chunks_of_pipe(descriptor))
    copy.flush()
    return _File(copy.fileno(), 0, name)


@contextlib.contextmanager
def selection(
    source: Access,
    query: Mapping[str, str],
    select: Callable[[bytes], bool],
    write: Consumer,
) -> Iterator[Selection]:
    """Yield the events that a service selects by ``query``, or those that ``select`` selects."""
    from ocsf_nft.state.archive import Archive

    service = source.service
    others = () if service is None else _other_stores(service)
    if service is not None and not others:
        yield ServiceSelection(service.control, query, write)
        return
    paths = store_paths(source.files) if service is None else (service.store, *others)
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(Archive(path)) for path in paths]
        yield StoreSelection(archives, select, write)


def store_paths(files: Files) -> Sequence[Path]:
    """Return the stores that options name; raises AbsentError if there is none."""
    from ocsf_nft.state.archive import stores

    if files.store is None:
        return stores(files.state_dir)
    if not files.store.is_file():
        raise AbsentError(
            f"{files.store} does not exist: `--state-dir DIR` finds the stores of a run"
        )
    return [files.store]


def _other_stores(service: RunningService) -> Sequence[Path]:
    """Return the stores of other runs in the state directory of a service, if any can be read.

    A service knows only its own events.
    """
    from ocsf_nft.state.archive import stores

    try:
        found = stores(service.state_dir)
    except (AbsentError, UnsupportedError):  # without permission, or its store is elsewhere
        return ()
    own = os.path.realpath(service.store)
    return [path for path in found if os.path.realpath(path) != own]
