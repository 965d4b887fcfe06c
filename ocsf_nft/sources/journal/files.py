"""Check of a journal's files before libsystemd opens them.

libsystemd silently skips a file that it can't open, so a journal may seem empty.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import AbsentError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFAULT: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
# The header format is described in systemd's docs/JOURNAL_FILE_FORMAT.md.
_SIGNATURE: Final = b"LPKSHHRH"
_HEADER: Final = struct.Struct("<8sII")  # signature, compatible flags, incompatible flags


def samples(directory: Path | None) -> list[Path]:
    """Return sample files of a journal: if libsystemd can open them, it can open all files.

    If ``directory`` is None, the journal is in journald's default folders. Raises AbsentError if
    ``directory`` does not exist, or if the default folders have no journal. Raises
    UnsupportedError if reading is not permitted.
    """
    if directory is not None and not directory.is_dir():
        raise AbsentError(f"there is no journal folder at {directory}")
    # libsystemd can't open a file with a feature that it lacks. So there is one sample for each
    # combination of features (the header's incompatible flags, such as a compression).
    by_features: dict[int, Path] = {}
    denied: Path | None = None
    for path in _files((directory,) if directory is not None else _DEFAULT):
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER.size)
        except PermissionError:
            denied = path
            continue
        except FileNotFoundError:
            continue  # deleted by rotation meanwhile
        if len(header) == _HEADER.size and header.startswith(_SIGNATURE):
            by_features.setdefault(_HEADER.unpack(header)[2], path)
    if by_features:
        return list(by_features.values())
    if denied is not None:
        raise UnsupportedError(
            f"reading {denied} is not permitted: run as root or in the group systemd-journal"
        )
    if directory is None:
        raise AbsentError("this machine has no journal: start systemd-journald, or read by NFLOG")
    return []  # the given folder exists, but has no journal files


def _files(directories: tuple[Path, ...]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(directory.glob("*.journal"))
        yield from sorted(directory.glob("*/*.journal"))
