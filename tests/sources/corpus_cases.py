"""Corpus of real kernel log lines, and the NFLOG messages of the same packets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft.record import Origin, Record
from ocsf_nft.sources import text
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog import line as nflog_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.record import Reject

_FOLDER = Path(__file__).parent.parent / "corpus"
_NETLINK_HEADER = 16


@dataclass(frozen=True)
class Case:
    name: str
    lines: tuple[str, ...]
    payloads: tuple[bytes, ...]

    @property
    def messages(self) -> tuple[str, ...]:
        return tuple(line.split(";", 1)[1] for line in self.lines)


def cases() -> list[Case]:
    with (_FOLDER / "kernel_records.jsonl").open() as corpus:
        return [
            Case(
                name=case["name"],
                lines=tuple(case["kmsg"]),
                payloads=tuple(bytes.fromhex(text)[_NETLINK_HEADER:] for text in case["nflog_hex"]),
            )
            for case in map(json.loads, corpus)
        ]


MESSAGES = [message for case in cases() for message in case.messages]


def read(message: str) -> Record | Reject | None:
    origin = Origin(
        transport="kmsg", identity="i", log_source="test", log_format="nf_log_syslog", raw=message
    )
    return text.read(message, origin=origin, time_ns=7, received_ns=8)


def record(message: str) -> Record:
    found = read(message)
    assert isinstance(found, Record), found
    return found


def nflog(
    payload: bytes, interface_name: Callable[[int], str | None] = lambda index: f"#{index}"
) -> Record:
    datagram = nflog_datagram.decode(memoryview(payload), 5, interface_name, 9)
    identity = f"nflog:seq:{datagram.sequence}"
    raw = nflog_line.render(datagram, identity)
    return nflog_datagram.record(
        datagram, transport="nflog", identity=identity, log_source="test", raw=raw
    )
