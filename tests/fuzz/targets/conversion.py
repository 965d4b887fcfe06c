"""Target: conversion of log files by the library in C, whose events must be those of Python."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from tests.conversion.both_ways import BothWays
from tests.fuzz import parts, seeds
from tests.fuzz.target import HOSTILE_TEXT, Target, require

_PREFIX: Final = re.compile(rb"^osb:h2-sb:[a-z0-9]+:(?=IN=)")
_HEADERS: Final = (
    b"[ 5051.267347] ",
    b"4,4647837,5051267347,-;",
    b"Nov 30 10:11:12 host kernel: [ 5051.267347] ",
    b"2026-11-30T10:11:12.123456+01:00 host.example kernel: ",
    b"<4>[ 5051.267347][    T1] ",
    b"kern  :warn  : [ 5051.267347] ",
    b"[Mon Nov 30 10:11:12 2026] ",
    b"2026-11-30T10:11:12,123456+01:00 ",
)
_PREFIXES: Final = (b"ocsf-nft:lab:egress:", b"[UFW BLOCK] ", b"ocsf-nft:vm:vm-input:")
#: Inputs of a pair of conversions: later ones begin with the templates of the seeds again.
_INPUTS_OF_A_PAIR: Final = 50_000


@cache
def _lines() -> list[bytes]:
    messages = [record.split(b";", 1)[1] for record in seeds.kernel_lines()]
    return [
        _HEADERS[number % len(_HEADERS)] + _PREFIX.sub(_PREFIXES[number % len(_PREFIXES)], message)
        for number, message in enumerate(messages)
    ]


class _Pair:
    """Pair of conversions that have learnt the seeds."""

    def __init__(self) -> None:
        self._ways: BothWays | None = None
        self._inputs = 0

    def convert(self, data: bytes) -> None:
        if self._ways is None or self._inputs >= _INPUTS_OF_A_PAIR:
            self._inputs = 0
            self._ways = BothWays()
            for line in _lines():
                self._ways.convert_lines((line + b"\n") * 5)
            require(self._ways.fast.records, "the library has converted no seed")
        self._inputs += 1
        ways, self._ways = self._ways, None  # an exception ends its use
        ways.convert_lines(data + b"\n")
        if not ways.fast.reader.is_inside:
            self._ways = ways


_PAIR: Final = _Pair()

TARGETS: Final = (
    Target(
        name="conversion",
        parse=_PAIR.convert,
        seeds=_lines,
        parts=parts.words,
        hostile=(*HOSTILE_TEXT, b"IN=", b"MF ", b"FRAG:8 ", b"MARK=0x1f ", b"443", b"65535"),
        share=1,
    ),
)
