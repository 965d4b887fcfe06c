"""Safe opening of a file for appending, in a directory where other users may write too.

Another user could otherwise create a link there, through which this process would write to any
file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from ocsf_nft.errors import DeliveryError

#: Events name users and processes: only the owner and a group of forwarders may read them.
MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750
_ROOT: Final = 0
_PROC: Final = Path("/proc/self")
#: Maximum number of symbolic links, as in Linux (path_resolution(7)).
_MAX_FOLLOWED_LINKS: Final = 40
_APPEND: Final = os.O_APPEND | os.O_NOCTTY


def open_to_append(path: Path) -> tuple[int, Path]:
    """Open the file at ``path`` for appending; create the file and its directory if missing.

    Return the descriptor, and the file's path after following symbolic links. The descriptor of a
    regular file is readable too. Raises DeliveryError if another user could
    have created the file, or a link to it. Raises OSError if the opening fails.
    """
    # One risk remains: a user who may rename files in one of the path's directories can replace the
    # file.
    for _ in range(_MAX_FOLLOWED_LINKS):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # created meanwhile: check it next
                return _create(path), path
            continue
        try:
            status = os.fstat(handle)
            if not stat.S_ISLNK(status.st_mode):
                _check_file(path, status)
                return _reopen(handle, status.st_mode), path
            followed = _follow(path, handle, status)
            if followed is None:
                access = os.O_RDWR if stat.S_ISREG(path.stat().st_mode) else os.O_WRONLY
                return os.open(path, access | _APPEND), path
            path = followed
        finally:
            os.close(handle)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def target_of(path: Path) -> Path:
    """Return the path that :func:`open_to_append` opens, or creates, after following links.

    Raises as :func:`open_to_append`. The file is not opened.
    """
    for _ in range(_MAX_FOLLOWED_LINKS):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return path
        try:
            status = os.fstat(handle)
            followed = _follow(path, handle, status) if stat.S_ISLNK(status.st_mode) else None
        finally:
            os.close(handle)
        if followed is None:
            return path
        path = followed
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def create_directory_of(path: Path) -> None:
    """Create the directory of the file at ``path`` if it is missing; raises as open_to_append."""
    _create_directory(target_of(path).parent)


def sync_directory(folder: Path) -> None:
    """Sync a directory to the disk, so that the names of new files survive a power cut.

    If the file system can't sync directories, do nothing. Any other failure raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # EINVAL: the file system does not support it (fsync(2)), as 9p and some of FUSE.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _APPEND
    try:
        descriptor = os.open(path, flags, MODE)
    except FileNotFoundError:
        # Only its own directory: a missing parent is more likely a mistake in the path.
        _create_directory(path.parent)
        descriptor = os.open(path, flags, MODE)
    try:
        sync_directory(path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _create_directory(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=DIRECTORY_MODE)
        sync_directory(folder.parent)


def _follow(path: Path, handle: int, status: os.stat_result) -> Path | None:
    """Return the path that a symbolic link contains; None if only the kernel can follow the link.

    Raises DeliveryError if another user has created the link.
    """
    _check_link(path, status)
    if status.st_dev == _PROC.stat().st_dev:  # /dev/stdout: the target of such a link is no path
        return None
    return path.parent / os.readlink("", dir_fd=handle)


def _reopen(handle: int, mode: int) -> int:
    # The file that was checked, even if another file has the path by now.
    name = f"/proc/self/fd/{handle}"
    if stat.S_ISREG(mode):
        return os.open(name, os.O_RDWR | _APPEND)
    # Without O_NONBLOCK the opening of a named pipe without a reader would never return.
    return os.open(name, os.O_WRONLY | os.O_NONBLOCK | _APPEND)


def _check_link(path: Path, status: os.stat_result) -> None:
    if not _is_trusted(status):
        raise DeliveryError(
            f"{path} is a symbolic link of user {status.st_uid}, who could redirect events to any "
            "file: remove it"
        )


def _check_file(path: Path, status: os.stat_result) -> None:
    # Only a world-writable directory, such as /tmp, lets any user create files and hard links.
    if not path.parent.stat().st_mode & stat.S_IWOTH:
        return
    if not _is_trusted(status) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        raise DeliveryError(
            f"{path} is of another user or has a second hard link, in a world-writable directory: "
            "remove it, or choose another directory"
        )


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in {_ROOT, os.geteuid()}
