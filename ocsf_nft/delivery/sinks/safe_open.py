"""Opening a file to append to it, in a directory that others may write to as well.

A symbolic link is followed when it is root's or our own. One of somebody else's is refused: he
could have us write to, and cut the last line of, whatever we may write to and he may not. In a
directory that everybody may write to (/tmp), so is a file that is neither, or that has a second
name. Whoever may write to a directory above can still put anything in our place: that is for
the directory's own permissions to prevent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from ocsf_nft.errors import DeliveryError

#: Events name who did what: for their owner and a group of forwarders, nobody else.
MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_ROOT: Final = 0
_PROC: Final = Path("/proc/self")
#: As many as Linux follows (path_resolution(7)).
_MOST_LINKS: Final = 40
_APPEND: Final = os.O_APPEND | os.O_NOCTTY


class Opened(NamedTuple):
    """A descriptor, and the path of the file itself where the one that was given is a link's."""

    descriptor: int
    path: Path


def open_to_append(path: Path) -> Opened:
    """Open what is at a path, or make a file; raises OSError, and DeliveryError when it is a trap.

    A file can be read by the descriptor too.
    """
    for _ in range(_MOST_LINKS):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # who was faster is looked at
                return Opened(_made(path), path)
            continue
        try:
            found = os.fstat(handle)
            if not stat.S_ISLNK(found.st_mode):
                _hold_planted(path, found)
                return Opened(_reopened(handle, found.st_mode), path)
            _hold_link(path, found)
            if found.st_dev == _PROC.stat().st_dev:
                # /dev/stdout: what such a link says is no path, only the kernel can follow it.
                access = os.O_RDWR if stat.S_ISREG(path.stat().st_mode) else os.O_WRONLY
                return Opened(os.open(path, access | _APPEND), path)
            path = path.parent / os.readlink("", dir_fd=handle)
        finally:
            os.close(handle)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def sync_names(folder: Path) -> None:
    """Have the names in a directory stay after a power cut; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A file system that has no way to do so, by fsync(2): 9p, some of FUSE.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _made(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _APPEND
    try:
        descriptor = os.open(path, flags, MODE)
    except FileNotFoundError:
        # Its directory alone: one further up that is not there is rather a mistake in the path.
        path.parent.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        sync_names(path.parent.parent)
        descriptor = os.open(path, flags, MODE)
    try:
        sync_names(path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _reopened(handle: int, mode: int) -> int:
    """A descriptor of the very file that was looked at, whatever has its name by now."""
    name = f"/proc/self/fd/{handle}"
    if stat.S_ISREG(mode):
        return os.open(name, os.O_RDWR | _APPEND)
    # Without O_NONBLOCK a named pipe that nobody reads would wait for ever.
    return os.open(name, os.O_WRONLY | os.O_NONBLOCK | _APPEND)


def _hold_link(path: Path, found: os.stat_result) -> None:
    if not _is_trusted(found):
        raise DeliveryError(
            f"{path} is a symbolic link of user {found.st_uid}, who could have anything be "
            "written to: remove it"
        )


def _hold_planted(path: Path, found: os.stat_result) -> None:
    if not path.parent.stat().st_mode & stat.S_IWOTH:
        return
    if not _is_trusted(found) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
        raise DeliveryError(
            f"{path} is not ours alone, in a directory that everybody may write to: remove it, or "
            "choose another directory"
        )


def _is_trusted(found: os.stat_result) -> bool:
    return found.st_uid in {_ROOT, os.geteuid()}
