"""Folder in memory for parsers that read files."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """Return a new folder of this process, which is removed at its exit."""
    made = Path(tempfile.mkdtemp(prefix="ocsf-nft-fuzz-", dir="/dev/shm"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
