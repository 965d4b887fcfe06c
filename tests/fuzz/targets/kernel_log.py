"""Targets: kernel log, journal and log files, where programs can write lines like the kernel's."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import SourceError
from ocsf_nft.log_prefixes import PREFIX_CHARACTERS, Configured, Prefixes, firewall_of
from ocsf_nft.record import Origin, Record, Reject
from ocsf_nft.sources import kmsg, text
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.journal import command
from ocsf_nft.sources.journal.kernel import KernelEntry, KernelEntryParser, message_filter
from ocsf_nft.sources.kernel_message import PrefixFilter
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.replay.source import Reader
from ocsf_nft.sources.text import grammar, line
from tests.fuzz import parts, seeds
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require
from tests.fuzz.targets.packets import _lines as nflog_lines
from tests.fuzz.targets.packets import check_record

if TYPE_CHECKING:
    from ocsf_nft.record import Gap

_NOW_NS: Final = 1_764_000_000_123_456_789
_ORIGIN: Final = Origin(
    transport="kmsg", identity="i", log_source="l", log_format="nf_log_syslog", raw=""
)
_PREFIXES: Final = Prefixes([Configured(begins="fw:", verdict="drop", sandbox="s")])
_FILTER: Final = PrefixFilter(None, _PREFIXES)
#: Words of log lines, and prefixes of other firewalls.
_WORDS: Final = (
    *HOSTILE_TEXT,
    b"IN= OUT= ",
    b"IN=eth0 OUT=",
    b"ocsf-nft:a:egress:",
    b"ocsf-nft:a:egress:permissive:",
    b"[UFW BLOCK] ",
    b"SRC=::1 ",
    b"DST=1.2.3.4 ",
    b"PROTO=TCP ",
    b"PROTO=ICMP TYPE=3 CODE=4 ",
    b"[SRC=",
    b"OPT (",
    b") ",
    b"] ",
    b"INCOMPLETE [8 bytes] ",
    b"FRAG:",
    b"MAC=",
    b"TRUNCATED ",
    b"LEN=0",
    b"MARK=0x",
    b"TUNNEL=",
    b"\\x0a",
    b"\\x5c",
)


def _check(found: Record | Reject | Gap | None) -> None:
    if isinstance(found, Record):
        check_record(found)


def _kmsg(data: bytes) -> None:
    parsed = kmsg.parse(data)
    if parsed is not None:
        source = kmsg.Kmsg(foreign=_PREFIXES)
        _check(source._read_line(parsed, data, _NOW_NS, _NOW_NS))


def _text(data: bytes) -> None:
    message = readable(data)
    found = text.read(message, origin=_ORIGIN, time_ns=_NOW_NS, received_ns=_NOW_NS)
    _check(found)
    _FILTER.matches(message)
    for prefix in text.possible_prefixes(message)[:4]:
        _PREFIXES.of(prefix)
        firewall_of(prefix[:PREFIX_CHARACTERS])
    start = message.find("IN=")
    match = line._COMMON.fullmatch(message, max(start, 0))
    facts = None if match is None else line._common_facts(match)
    if facts is not None:
        require(facts == _slow(message[start:]), "the two parsers read a line differently")


def _slow(packet_line: str) -> object:
    try:
        return grammar.read(packet_line)
    except MalformedError as error:
        return error


def _journal_entry(data: bytes) -> None:
    entry = command._entry(data)
    command._same_entry(entry.cursor, "s=1;i=2;b=3;m=4;t=5;x=6")
    if message_filter(_FILTER)(entry.message):
        _check(KernelEntryParser(_FILTER).parse(entry, _NOW_NS))


def _journal_fields(data: bytes) -> None:
    """Parse an entry as libsystemd gives it: its fields are any bytes, its times 64-bit numbers."""
    message, transport, facility, source_us, times, *_ = [
        *data.split(b"\0", 4),
        b"",
        b"",
        b"",
        b"",
        b"",
    ]
    entry = KernelEntry(
        cursor="s=1;i=2",
        boot="0" * 32,
        realtime_us=int.from_bytes(times[:8], "little"),
        monotonic_us=int.from_bytes(times[8:16], "little"),
        message=message,
        transport=transport or None,
        facility=facility or None,
        source_us=source_us or None,
    )
    message_filter(_FILTER)(message)
    _check(KernelEntryParser(_FILTER).parse(entry, _NOW_NS))


def _log_file(data: bytes) -> None:
    whole = _read(data, len(data) + 1)
    cut = _read(data, max(1, len(data) // 3))
    require(whole == cut, "the result depends on the sizes of the reads")


def _read(data: bytes, size: int) -> list[Record | Reject]:
    reader = Reader(
        boot_ns=_NOW_NS - 10**15, unstamped_ns=_NOW_NS, now_ns=lambda: _NOW_NS, zone=dt.UTC
    )
    found: list[Record | Reject] = []
    for batch in reader.batches(data[at : at + size] for at in range(0, len(data), size)):
        # Accepted and rejected lines are in two lists, each in its order.
        found += batch.records
    for record in found:
        _check(record)
    return found


def _messages() -> list[bytes]:
    lines = [record.split(b";", 1)[1] for record in seeds.kernel_lines()]
    return [*lines, b"[UFW BLOCK] " + lines[0].partition(b":out:")[2], b"ocsf-nft:a:b:" + lines[1]]


_MESSAGE: Final = (
    b"ocsf-nft:lab:egress:IN= OUT=eth0 SRC=10.0.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 "
    b"TTL=64 ID=1429 DF PROTO=TCP SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 UID=0 GID=0 "
)
_ENTRIES: Final = (
    b'{"__CURSOR":"s=a;i=1;b=c;m=4;t=5;x=6","__REALTIME_TIMESTAMP":"1764000000000000",'
    b'"__MONOTONIC_TIMESTAMP":"5000000","_BOOT_ID":"0123456789abcdef0123456789abcdef",'
    b'"_TRANSPORT":"kernel","SYSLOG_FACILITY":"0","_SOURCE_MONOTONIC_TIMESTAMP":"4999999",'
    b'"MESSAGE":"' + _MESSAGE + b'"}\n',
    (
        b'{"__CURSOR":"s=a;i=1","__REALTIME_TIMESTAMP":"1764000000000000","__MONOTONIC_TIMESTAMP":"5",'
        b'"_TRANSPORT":"driver","MESSAGE":"Missed 12 kernel messages"}\n'
    ),
    (
        b'{"__CURSOR":"s=a","__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"5","_TRANSPORT":"kernel",'
        b'"SYSLOG_FACILITY":["0","1"],"MESSAGE":[111,99,115,102,45,110,102,116,58,255,73,78,61]}\n'
    ),
)
_EXPORT: Final = (
    b"__CURSOR=s=a;i=1\n__REALTIME_TIMESTAMP=1764000000000000\n__MONOTONIC_TIMESTAMP=5000000\n"
    b"_BOOT_ID=0123456789abcdef0123456789abcdef\n_TRANSPORT=kernel\nSYSLOG_FACILITY=0\n"
    b"MESSAGE=" + _MESSAGE + b"\n\n"
    b"__CURSOR=s=a;i=2\n_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE\n"
    + (len(_MESSAGE)).to_bytes(8, "little")
    + _MESSAGE
    + b"\n\n"
)
_TIMES: Final = (1_764_000_000_000_000).to_bytes(8, "little") + (5_000_000).to_bytes(8, "little")
_FIELDS: Final = (
    b"\0".join((_MESSAGE, b"kernel", b"0", b"4999999", _TIMES)),
    b"\0".join((_MESSAGE, b"kernel", b"1", b"", _TIMES)),
    b"\0".join((b"Missed 12 kernel messages", b"driver", b"", b"", _TIMES)),
)
_HEADERS: Final = (
    b"",
    b"[ 5051.267347] ",
    b"<4>[ 5051.267347][ T12] ",
    b"kern  :warn  : [Mon Nov 30 10:11:12 2026] ",
    b"Nov 30 10:11:12 host kernel: [ 5051.267347] ",
    b"Feb 29 10:11:12.123 host kern.warn kernel: ",
    b"2026-11-30T10:11:12.123456+01:00 host kernel: ",
    b"2026-11-30T10:11:12,123456+00:00 ",
    b'<4>1 2026-11-30T10:11:12Z host kernel - - [a@1 b="c\\"d"] ',
)


def _files() -> list[bytes]:
    lines = [header + _MESSAGE for header in _HEADERS]
    return [
        *(line + b"\n" for line in lines),
        b"\n".join(lines),
        b"".join(_ENTRIES),
        _EXPORT,
        *(record + b"\n SUBSYSTEM=net\n" for record in seeds.kernel_lines()[:8]),
        *(each + b"\n" for each in nflog_lines()[:4]),
        _EXPORT + lines[3] + b"\r\n" + _ENTRIES[0],
    ]


TARGETS: Final = (
    Target(
        name="kmsg",
        parse=_kmsg,
        seeds=seeds.kernel_lines,
        parts=parts.words,
        hostile=_WORDS,
        limit=16_384,
        share=3,
    ),
    Target(
        name="log-text",
        parse=_text,
        seeds=_messages,
        parts=parts.words,
        hostile=_WORDS,
        limit=32_768,
        share=3,
    ),
    Target(
        name="journal-entry",
        parse=_journal_entry,
        seeds=lambda: _ENTRIES,
        parts=parts.json_values,
        documented=(SourceError,),
        hostile=(*HOSTILE_JSON, *_WORDS),
        limit=32_768,
        share=4,
    ),
    Target(
        name="journal-fields",
        parse=_journal_fields,
        seeds=lambda: _FIELDS,
        parts=parts.words,
        hostile=(*_WORDS, b"Missed ", b"\0kernel\0"),
        limit=16_384,
        share=3,
    ),
    Target(
        name="log-file",
        parse=_log_file,
        seeds=_files,
        parts=parts.lines,
        hostile=(*_WORDS, *_HEADERS, b"MESSAGE\n", b"\xff" * 8, b"__CURSOR="),
        limit=65_536,
        share=1,
    ),
)
