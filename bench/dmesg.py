"""Kernel log text to read: real lines of the corpus with our prefix, as ``dmesg`` prints them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CORPUS: Final = Path(__file__).parent.parent / "tests" / "corpus" / "kernel_records.jsonl"
#: Boot time of the text's machine: this machine may be up for less than the span of the text.
BOOT: Final = "2026-11-01T00:00:00Z"
#: The usual attempts of a sandbox.
_USUAL_CASES: Final = ("tcp4 syn root", "mptcp6 syn", "udp4 uid 1000", "udp6 dns")
_PREFIX: Final = re.compile(r"osb:h2-sb:[a-z0-9]+:(?=IN=)")
#: Fields that differ from packet to packet, with their ranges. (ICMP has a SEQ too.)
_VARYING: Final = re.compile(
    r"(?<= )(?:(ID|SPT)=\d+|(SEQ)=\d+(?= ACK=))|(?<= DST=203\.0\.113\.)\d+"
)
_RANGES: Final = {"ID": (1, 65_535), "SPT": (32_768, 60_999), "SEQ": (1, 0xFFFFFFFF)}


def usual(lines: int) -> bytes:
    """Return TCP connects and UDP datagrams of both families, in equal parts."""
    return _text([line for name, line in _cases() if name in _USUAL_CASES], lines)


def every_form(lines: int) -> bytes:
    """Return every form of the corpus: unusual forms in equal parts with usual ones."""
    return _text([line for _, line in _cases()], lines)


def _cases() -> Iterator[tuple[str, str]]:
    with _CORPUS.open(encoding="utf-8") as corpus:
        for case in map(json.loads, corpus):
            for record in case["kmsg"]:
                message = record.split(";", 1)[1]
                line, replaced = _PREFIX.subn(f"ocsf-nft:{stage.SANDBOX}:egress:", message, count=1)
                if replaced:
                    yield case["name"], line


def _text(forms: Sequence[str], lines: int) -> bytes:
    chance = random.Random(1)

    def vary(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return str(chance.randint(1, 254))
        return f"{name}={chance.randint(*_RANGES[name])}"

    return "".join(
        f"[{5_000 + number / 10_000:12.6f}] {_VARYING.sub(vary, forms[number % len(forms)])}\n"
        for number in range(lines)
    ).encode()
