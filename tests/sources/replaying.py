"""Helpers that read lines as a log file, with a fixed current time and boot time."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from ocsf_nft.record import Batch, Record, Reject
from ocsf_nft.sources.replay import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE: Final = (
    "ocsf-nft:sb:egress:IN= OUT=eth0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 "
    "TTL=64 ID=1 DF PROTO=UDP SPT=1234 DPT=53 LEN=28 UID=0 GID=0 "
)
NOW: Final = dt.datetime(2026, 11, 24, 16, 0, 0, tzinfo=dt.UTC)
BOOT_NS: Final = 1_700_000_000_000_000_000
UNSTAMPED_NS: Final = 5


def nanoseconds(time: dt.datetime) -> int:
    return int(time.timestamp()) * 10**9 + time.microsecond * 1000


#: Time that the stamps of these tests stand for.
STAMP_NS: Final = nanoseconds(dt.datetime(2026, 11, 24, 15, 5, 55, tzinfo=dt.UTC))


def reader() -> Reader:
    return Reader(
        boot_ns=BOOT_NS, unstamped_ns=UNSTAMPED_NS, now_ns=lambda: nanoseconds(NOW), zone=dt.UTC
    )


def read(*lines: str | bytes) -> list[Record | Reject]:
    data = b"".join(line.encode() + b"\n" if isinstance(line, str) else line for line in lines)
    return flat(reader().batches([data]))


def flat(batches: Iterable[Batch]) -> list[Record | Reject]:
    found: list[Record | Reject] = []
    for batch in batches:
        found += batch.records
        found += batch.rejected
    return found


def one(*lines: str | bytes) -> Record:
    found = read(*lines)
    assert len(found) == 1
    assert isinstance(found[0], Record), found[0]
    return found[0]


def rejected(*lines: str | bytes) -> Reject:
    found = read(*lines)
    assert len(found) == 1
    assert isinstance(found[0], Reject), found[0]
    return found[0]


def identity(found: Record | Reject) -> str:
    assert isinstance(found, Record)
    return found.origin.identity


def entry(**fields: object) -> dict[str, object]:
    """Return a kernel message's journal entry with changed fields."""
    return {
        "__CURSOR": "s=1;i=2",
        "__REALTIME_TIMESTAMP": str(STAMP_NS // 1000),
        "__MONOTONIC_TIMESTAMP": "2000000",
        "_SOURCE_MONOTONIC_TIMESTAMP": "1999000",
        "_TRANSPORT": "kernel",
        "SYSLOG_FACILITY": "0",
        "MESSAGE": MESSAGE,
    } | fields


def export(fields: dict[str, object]) -> bytes:
    """Return an entry in journalctl's export format; byte values follow their length."""
    out = b""
    for name, value in fields.items():
        if isinstance(value, bytes):
            out += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            out += f"{name}={value}\n".encode()
    return out + b"\n"
