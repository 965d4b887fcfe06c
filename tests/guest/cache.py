"""Cache of the parts of a guest that are slow to build, in a folder that git ignores."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROJECT: Final = Path(__file__).parents[2]
_CACHE: Final = PROJECT / ".guest"


def build_once(name: str, of: Iterable[object], make: Callable[[Path], None]) -> Path:
    """Return the folder that ``make`` fills; build it again if a value in ``of`` has changed.

    Older folders of the same name are removed. If two runs build it at once, the first folder
    remains.
    """
    _CACHE.mkdir(exist_ok=True)
    key = hashlib.sha256("\n".join(map(str, of)).encode()).hexdigest()[:16]
    folder = _CACHE / f"{name}-{key}"
    if folder.exists():
        return folder
    unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=_CACHE))
    try:
        make(unfinished)
        older = list(_CACHE.glob(f"{name}-*"))
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        for each in older:
            if each != folder:  # another run may be removing it too
                shutil.rmtree(each, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def stamp(path: Path) -> str:
    """Return a text that changes when the file changes."""
    status = os.stat(path)  # noqa: PTH116 - one call for both
    return f"{path} {status.st_size} {status.st_mtime_ns}"
