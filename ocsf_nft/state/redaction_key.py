"""Key of the hashes in placeholders of redacted secrets, in a file of the state directory."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.redaction import KEY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "redaction.key"


def load(directory: Path) -> bytes:
    """Return the key in a state directory, and create it if there is none.

    The file is readable by its owner only, and has the key as hexadecimal digits. Of two programs
    that create it at the same time, both get the key of the first one. Raises UnsupportedError if
    the file can't be read or written, or has no key.
    """
    path = directory / FILE
    try:
        return _read(path) or _create(path)
    except OSError as error:
        raise UnsupportedError(
            f"{path} can't be used ({error.strerror}): make the state directory writable"
        ) from error


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        os.fchmod(descriptor, 0o600)
        digits = file.read(4 * KEY_BYTES).strip()
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(digits.decode("ascii"))
        if len(key) == KEY_BYTES:
            return key
    raise UnsupportedError(f"{path} has no key of {KEY_BYTES} bytes: remove it, for a new one")


def _create(path: Path) -> bytes:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # another program was first
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    key = _read(path)
    if key is None:
        raise FileNotFoundError(errno.ENOENT, "it was removed")
    return key
