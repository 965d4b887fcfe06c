"""What is slow to make for a guest is made once, in a folder of the project that git ignores."""

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


def made(name: str, of: Iterable[object], make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` fills, made anew when what it is made ``of`` has changed.

    Older ones of the name are removed. Two runs at once do not meet: the first one's stays.
    """
    _CACHE.mkdir(exist_ok=True)
    key = hashlib.sha256("\n".join(map(str, of)).encode()).hexdigest()[:16]
    place = _CACHE / f"{name}-{key}"
    if place.exists():
        return place
    unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=_CACHE))
    try:
        make(unfinished)
        older = list(_CACHE.glob(f"{name}-*"))
        try:
            unfinished.rename(place)
        except OSError:
            if not place.exists():
                raise
        for each in older:
            if each != place:
                shutil.rmtree(each)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def stamp(path: Path) -> str:
    """Changes when the file does."""
    status = os.stat(path)  # noqa: PTH116 - one call for both
    return f"{path} {status.st_size} {status.st_mtime_ns}"
