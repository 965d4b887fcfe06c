"""Helpers that read a store and fill a disk."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.delivery.store import Store


async def stored_uids(store: Store, beyond: int = 0) -> list[str]:
    return [row.uid for row in await store.read(beyond, events=1 << 20, size=1 << 40)]


def fill(folder: Path, left: int = 0) -> Path:
    """Fill the disk of a folder until ``left`` bytes are free; return the file."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(folder).free > left:
            file.write(b"\0" * 4096)
    return path
