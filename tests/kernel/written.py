"""Events that a run has written to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pathlib import Path


def events(path: Path) -> list[dict[str, Any]]:
    """Return all events after the run has ended: the file then ends with a whole line."""
    content = path.read_bytes()
    assert content.endswith(b"\n") or not content
    return so_far(path)


def so_far(path: Path) -> list[dict[str, Any]]:
    """Return the events of all whole lines, while the run may still write."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [orjson.loads(line) for line in lines if line.endswith(b"\n")]


def distinct(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same events without duplicates."""
    uids = [event["metadata"]["uid"] for event in found]
    assert len(set(uids)) == len(uids)
    return found
