"""What a run has written to a file so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pathlib import Path


def events(path: Path) -> list[dict[str, Any]]:
    """The events of its whole lines: a write that still goes on is seen in part."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [orjson.loads(line) for line in lines if line.endswith(b"\n")]
