"""Real records as seeds: the corpus of kernel records, and what ``record.py`` has recorded."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: File that ``record.py`` writes.
RECORDED: Final = Path(__file__).with_name("corpus") / "recorded.jsonl"
_KERNEL: Final = Path(__file__).parents[1] / "corpus" / "kernel_records.jsonl"


@cache
def recorded(kind: str) -> tuple[bytes, ...]:
    """Return the recorded contents of a kind, such as ``netlink route``."""
    lines = map(json.loads, RECORDED.read_text("ascii").splitlines())
    return tuple(bytes.fromhex(line["hex"]) for line in lines if line["kind"] == kind)


def of_kind(kind: str) -> Callable[[], tuple[bytes, ...]]:
    """Return a function that returns the recorded contents of a kind."""
    return lambda: recorded(kind)


@cache
def kernel_lines() -> tuple[bytes, ...]:
    """Return records of /dev/kmsg about packets."""
    return tuple(line.encode() for case in _cases() for line in case["kmsg"])


@cache
def nflog_messages() -> tuple[bytes, ...]:
    """Return NFLOG messages, with their netlink headers."""
    return tuple(bytes.fromhex(text) for case in _cases() for text in case["nflog_hex"])


def _cases() -> list[dict[str, list[str]]]:
    return [json.loads(line) for line in _KERNEL.read_text("utf-8").splitlines()]
