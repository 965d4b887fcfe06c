"""Targets that fail on purpose, for the tests of the driver: OCSF_NFT_FUZZ_SELF_TEST=1."""

from __future__ import annotations

import os
import signal
from typing import Final

from tests.fuzz import parts
from tests.fuzz.target import Target

#: Part of the inputs that fail: few of them have it.
_FATAL: Final = b"%s%n"
_stored: list[bytes] = []


def _is_fatal(data: bytes) -> bool:
    return _FATAL in data


def _error(data: bytes) -> None:
    if _is_fatal(data):
        raise IndexError("planted")
    if data[:1] == b"d":
        raise ValueError("documented")


def _hang(data: bytes) -> None:
    while _is_fatal(data):
        pass


def _memory(data: bytes) -> None:
    if _is_fatal(data):
        _stored.append(b"x" * (150 << 20))


def _death(data: bytes) -> None:
    if _is_fatal(data):
        os.kill(os.getpid(), signal.SIGKILL)


TARGETS: Final = tuple(
    Target(
        name=f"self-{name}",
        parse=parse,
        seeds=lambda: (b"documented", b"normal"),
        parts=parts.words,
        hostile=(b"a", b"b", b"c", b"d", b"e", b"f", _FATAL),
        documented=(ValueError,),
        limit=64,
    )
    for name, parse in (
        ("error", _error), ("hang", _hang), ("memory", _memory), ("death", _death),
    )
)  # fmt: skip
