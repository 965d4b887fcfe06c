"""Situations and their events, as JSON files for review.

``python -m tests.golden.situations`` rewrites the files: review the changes before you commit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.attempt import Attempt, Incident, IncidentEnd, ScanSender
from ocsf_nft.flow import Count
from ocsf_nft.log_prefixes import Prefixes
from ocsf_nft.ocsf import finding_parts
from ocsf_nft.ocsf.bypass_events import fence_bypassed, gate_blocked
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fence_state_events import FenceState, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import collection_gap, fault, lifecycle, records_dropped
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.process import Process
from ocsf_nft.record import DnsQuestion, Gap, Origin, Record
from ocsf_nft.sources import text as text_source
from ocsf_nft.sources.replay import Reader
from tests.conformance import protections
from tests.conformance.attributed import (
    BY_THE_USER,
    ONE_OF_SEVERAL,
    PROCESSES,
    SEVERAL_IN_ONE_WINDOW,
    done_by,
)
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    HOST,
    RECORDS,
    SAMPLE,
    TIME_NS,
    TUNNEL,
)
from tests.conformance.incidents import fan_out_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.event_base import Event

FOLDER: Final = Path(__file__).with_name("events")

_MAPPER: Final = Mapper(CONTEXT)
_BY_A_PROCESS: Final = {
    finding_parts.TAMPERING,
    finding_parts.RESTORE_STOPPED,
    finding_parts.LOG_GROUP_TAKEN,
    finding_parts.SURROUNDINGS_CHANGED,
}
_SECOND: Final = 1_000_000_000
#: Kernel log line of each kind of packet.
_LINES: Final = {
    "https": "egress:IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 TTL=64 "
    "ID=1429 DF PROTO=TCP SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 UID=1000 GID=1000 ",
    "ssh": "egress:IN= OUT=sb0 SRC=10.200.0.2 DST=198.51.100.22 LEN=60 TOS=0x00 PREC=0x00 TTL=64 "
    "ID=7731 DF PROTO=TCP SPT=51000 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0 UID=1000 GID=1000 ",
    "credentials": "egress:IN= OUT=sb0 SRC=10.200.0.2 DST=169.254.169.254 LEN=60 TOS=0x00 "
    "PREC=0x00 TTL=64 ID=9 DF PROTO=TCP SPT=40112 DPT=80 WINDOW=64240 RES=0x00 SYN URGP=0 "
    "UID=1000 GID=1000 ",
    "dns": "egress:IN= OUT=sb0 SRC=10.200.0.2 DST=8.8.8.8 LEN=67 TOS=0x00 PREC=0x00 TTL=64 ID=3 "
    "DF PROTO=UDP SPT=50000 DPT=53 LEN=47 UID=1000 GID=1000 ",
    "quic": "egress:IN= OUT=sb0 SRC=fd00:0200:0000:0000:0000:0000:0000:0002 "
    "DST=2001:0db8:0000:0000:0000:0000:0000:0007 LEN=1280 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=UDP "
    "SPT=50001 DPT=443 LEN=1240 UID=1000 GID=1000 ",
    "ping": "egress:IN= OUT=sb0 SRC=fd00:0200:0000:0000:0000:0000:0000:0002 "
    "DST=2001:0db8:0000:0000:0000:0000:0000:0007 LEN=104 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=ICMPv6 "
    "TYPE=128 CODE=0 ID=5 SEQ=1 UID=1000 GID=1000 ",
    "nested": "forward:IN=nested0 OUT=sb0 SRC=10.201.0.9 DST=203.0.113.7 LEN=60 TOS=0x00 "
    "PREC=0x00 TTL=63 ID=11 DF PROTO=TCP SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 ",
    "outside": "ingress:IN=sb0 OUT= MAC=02:00:00:00:00:02:02:00:00:00:00:01:08:00 "
    "SRC=198.51.100.1 DST=10.200.0.2 LEN=60 TOS=0x00 PREC=0x00 TTL=52 ID=77 DF PROTO=TCP "
    "SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 ",
    "vm credentials": "vm-forward:IN=vmtap-0 OUT= MAC=02:00:00:00:07:01:02:00:00:00:07:02:08:00 "
    "SRC=172.16.7.2 DST=169.254.169.254 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=9 DF PROTO=TCP "
    "SPT=40112 DPT=80 WINDOW=64240 RES=0x00 SYN URGP=0 ",
    "vm host": "vm-input:IN=vmtap-0 OUT= MAC=02:00:00:00:07:01:02:00:00:00:07:02:08:00 "
    "SRC=172.16.7.2 DST=172.16.7.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=10 DF PROTO=TCP "
    "SPT=40114 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0 ",
    "vm in another's name": "vm-link:IN=vmtap-0 OUT= MACSRC=02:00:00:00:07:77 "
    "MACDST=02:00:00:00:07:01 MACPROTO=0800 SRC=198.51.100.9 DST=203.0.113.7 LEN=48 TOS=0x00 "
    "PREC=0x00 TTL=64 ID=1 PROTO=UDP SPT=4000 DPT=4444 LEN=28 UID=0 GID=0 ",
    "vm from outside": "vm-ingress:IN=eth0 OUT=vmtap-0 "
    "MAC=02:00:00:00:00:02:02:00:00:00:00:01:08:00 SRC=198.51.100.1 DST=172.16.7.2 LEN=60 "
    "TOS=0x00 PREC=0x00 TTL=51 ID=77 DF PROTO=TCP SPT=41254 DPT=22 WINDOW=64240 RES=0x00 SYN "
    "URGP=0 ",
}
_UFW: Final = (
    "[UFW BLOCK] IN=eth0 OUT= MAC=02:00:00:00:00:02:02:00:00:00:00:01:08:00 SRC=198.51.100.1 "
    "DST=192.0.2.10 LEN=44 TOS=0x00 PREC=0x00 TTL=241 ID=54321 PROTO=TCP SPT=44444 DPT=3389 "
    "WINDOW=1024 RES=0x00 SYN URGP=0 "
)


def _read(message: str, number: int) -> Record:
    """Return a kernel message as record number ``number`` since boot."""
    origin = Origin(
        transport="kmsg",
        identity=f"kmsg:{HOST.boot_uid}:{number}",
        log_source="/dev/kmsg",
        log_format="nf_log_syslog",
        raw=message,
        sequence=number,
        original_time="225600.000000",
    )
    found = text_source.read(
        message, origin=origin, time_ns=TIME_NS, received_ns=TIME_NS + 2_000_000
    )
    assert isinstance(found, Record)
    return Prefixes().named(found)


def _in_syslog(message: str) -> Record:
    """Return a kernel message that a host named web-1 sent to a syslog server."""
    line = f"2026-01-01T00:00:00+00:00 web-1 kernel: [  100.000000] {message}\n"
    reader = Reader(boot_ns=0, now_ns=lambda: TIME_NS + 2_000_000)
    ((found,),) = (batch.records for batch in reader.batches([line.encode()]))
    return Prefixes().named(found)


def _record(name: str) -> Record:
    return _read(f"ocsf-nft:sb1:{_LINES[name]}", 5000 + list(_LINES).index(name))


def _allowed(name: str) -> Record:
    """Return the same record, logged by a permissive fence."""
    line = _LINES[name].replace(":", ":permissive:", 1)
    return _read(f"ocsf-nft:sb1:{line}", 5000 + list(_LINES).index(name))


def _activity(attempt: Attempt, mapper: Mapper = _MAPPER) -> Event:
    return mapper.network_activity(attempt, processed_ns=attempt.end_ns + 3_000_000)


def _finding(found: Attempt | IncidentEnd) -> Event:
    event = _MAPPER.finding(found, processed_ns=found.end_ns + 3_000_000)
    assert event is not None
    return event


def _incident(name: str, windows: int, packets: int, found_at: int) -> Incident:
    identity = _record(name).origin.identity
    latest = (identity, *(f"{identity}/{number}" for number in range(1, windows)))
    return Incident(
        identity=identity,
        windows=windows,
        packets=packets,
        found_at=found_at,
        start_ns=TIME_NS,
        latest=latest,
    )


def _fence(before: FenceState, after: FenceState, reason: str | None) -> Event:
    return fence_state(
        CONTEXT,
        sandbox="sb1",
        before=before,
        after=after,
        time_ns=TIME_NS,
        tables=["inet ocsf_nft", "netdev ocsf_nft"],
        transport="nflog",
        reason=reason,
    )


def _situations() -> Iterator[tuple[str, Event]]:
    for name, line in (
        ("a-program-that-ignores-the-proxy", "https"),
        ("a-name-lookup", "dns"),
        ("http3", "quic"),
        ("a-ping", "ping"),
        ("a-connection-from-outside", "outside"),
        ("a-nested-sandbox", "nested"),
        ("a-vm-asks-for-credentials", "vm credentials"),
        ("a-vm-tries-its-host", "vm host"),
        ("a-vm-with-a-foreign-source", "vm in another's name"),
        ("a-vm-is-tried-from-outside", "vm from outside"),
    ):
        yield name, _activity(Attempt.of(_record(line)))
    yield "a-permissive-fence-allows", _activity(Attempt.of(_allowed("https")))
    yield "a-raw-frame", _activity(Attempt.of(RECORDS["link 88b5"]))
    yield "the-same-999-times", _activity(ATTEMPTS["counted tcp4"])
    named = Attempt.of(replace(_record("dns"), question=DnsQuestion("files.example.org", 28)))
    yield "a-name-lookup-with-its-name", _activity(named)
    (query,) = _MAPPER.dns_activities(named, processed_ns=named.end_ns + 3_000_000)
    yield "a-dns-query", query
    tunnel = replace(
        ATTEMPTS["counted dns"],
        incident=replace(_incident("dns", 4, 312, found_at=4), questions=TUNNEL),
        questions=TUNNEL[30:],
    )
    yield "a-dns-tunnel-goes-on", _activity(tunnel)
    yield "a-dns-tunnel-is-found", _finding(tunnel)
    https = Attempt.of(_record("https"))
    known_program = replace(https, attribution=done_by(PROCESSES["all of it"]))
    yield "a-program-that-is-known", _activity(known_program, Mapper(CONTAINED))
    in_memory = replace(https, attribution=done_by(PROCESSES["in memory"]))
    yield "a-program-only-in-memory", _activity(in_memory)
    yield "one-of-several-programs", _activity(replace(https, attribution=ONE_OF_SEVERAL))
    yield "only-the-user-is-known", _activity(replace(https, attribution=BY_THE_USER))
    yield "a-scan-is-aggregated", _activity(ATTEMPTS["many of egress, in full"])
    nmap = Process(pid=5001, name="nmap", path="/usr/bin/nmap", uid=1000, cmd_line="nmap -sT sb2")
    scan = fan_out_of(
        sample=SAMPLE[:10],
        senders=(ScanSender(process=nmap, attempts=40, flow=SAMPLE[0]),),
        windows=40,
        latest=("kmsg:boot:5678", "kmsg:boot:5679"),
    )
    yield "a-scan-is-found", fan_out(CONTEXT, scan, processed_ns=scan.end_ns + 3_000_000)
    for kind in protections.KINDS:
        by = PROCESSES["all of it"] if kind in _BY_A_PROCESS else None
        series = protections.series_of(
            kind, processes=() if by is None else (by,), is_tampering=by is not None
        )
        yield f"{kind.code}", protections.finding_of(CONTEXT, series)
    asked = replace(
        Attempt.of(_record("credentials")), incident=_incident("credentials", 1, 1, found_at=1)
    )
    yield "cloud-credentials-are-asked-for", _finding(asked)
    yield (
        "credentials-are-allowed",
        _finding(replace(asked, record=_allowed("credentials"))),
    )
    again = Attempt(
        record=_record("ssh"),
        packets=28,
        bytes=28 * 60,
        start_ns=TIME_NS + 3 * _SECOND,
        end_ns=TIME_NS + 7 * _SECOND,
        incident=_incident("ssh", 4, 40, found_at=3),
    )
    yield "ssh-again-and-again", _finding(again)
    yield (
        "a-bypass-is-found",
        _finding(replace(again, incident=_incident("ssh", 3, 12, found_at=3))),
    )
    yield (
        "a-permissive-fence-leaks",
        _finding(
            replace(again, record=_allowed("ssh"), incident=_incident("ssh", 3, 12, found_at=3))
        ),
    )
    outside = replace(
        Attempt.of(_record("outside")), incident=_incident("outside", 3, 12, found_at=3)
    )
    yield "an-inbound-attempt-is-found", _finding(outside)
    by_many = replace(_incident("ssh", 4, 40, found_at=3), attribution=SEVERAL_IN_ONE_WINDOW)
    yield "ssh-by-several-programs", _finding(replace(again, incident=by_many))
    ended = IncidentEnd(
        record=_record("ssh"),
        incident=_incident("ssh", 5, 52, found_at=3),
        end_ns=TIME_NS + 15 * _SECOND,
    )
    yield "ssh-has-ended", _finding(ended)
    yield "another-firewall", _activity(Attempt.of(_read(_UFW, 6000)), Mapper(Context()))
    yield "another-firewall-in-syslog", _activity(Attempt.of(_in_syslog(_UFW)), Mapper(Context()))
    yield from _of_fences()
    yield "ocsf-nft-starts", lifecycle(CONTEXT, activity="start", time_ns=TIME_NS)
    missing = Gap(
        transport="kmsg",
        reason="the ring was overrun",
        dropped=655_090,
        since_ns=TIME_NS,
        until_ns=TIME_NS + 4_000_000_000,
    )
    yield (
        "records-are-dropped",
        records_dropped(CONTEXT, missing, processed_ns=missing.until_ns + 3_000_000),
    )
    yield (
        "a-collection-gap",
        collection_gap(
            CONTEXT,
            sandbox="sb1",
            packets=2_034_112,
            since_ns=TIME_NS - 10_000_000_000,
            until_ns=TIME_NS,
            reason="ocsf-nft was not running, or was delayed",
            processed_ns=TIME_NS + 3_000_000,
        ),
    )
    for name, minutes, is_cleared in (
        ("a-sink-is-down", 0, False),
        ("a-sink-is-still-down", 3, False),
        ("a-sink-is-up-again", 5, True),
    ):
        yield (
            name,
            fault(
                CONTEXT,
                subject="sink siem is down",
                cause="https://siem.example:8088 can't be reached: connection refused",
                sandbox=None,
                since_ns=TIME_NS,
                now_ns=TIME_NS + minutes * 60_000_000_000,
                is_cleared=is_cleared,
            ),
        )


def _of_fences() -> Iterator[tuple[str, Event]]:
    yield "the-fence-is-active", _fence(FenceState.ABSENT, FenceState.ACTIVE, None)
    yield (
        "the-fence-is-permissive",
        _fence(
            FenceState.ACTIVE,
            FenceState.PERMISSIVE,
            "it was installed again, as a permissive fence",
        ),
    )
    yield (
        "the-fence-cannot-log",
        _fence(
            FenceState.ABSENT, FenceState.DEGRADED, "the kernel has no log expression (nft_log)"
        ),
    )
    yield (
        "the-fence-is-removed",
        _fence(
            FenceState.ACTIVE,
            FenceState.ABSENT,
            "another process had removed it before this run did",
        ),
    )
    yield (
        "the-last-gate-stops-frames",
        gate_blocked(
            CONTEXT,
            sandbox="sb1",
            uplinks=("eth0",),
            frames=Count(2, 120),
            since_ns=TIME_NS - 2_000_000_000,
            until_ns=TIME_NS,
        ),
    )
    yield (
        "the-fence-is-bypassed",
        fence_bypassed(
            CONTEXT,
            sandbox="sb1",
            uplinks=("eth0",),
            frames=Count(3, 180),
            total=Count(4, 240),
            since_ns=TIME_NS - 2_000_000_000,
            until_ns=TIME_NS,
        ),
    )
    for name, left in (("undone", ()), ("left", ("the uplink eth0 was renamed to other",))):
        yield f"changed-surroundings-are-{name}", protections.surroundings_event(CONTEXT, left)


def situations() -> dict[str, Any]:
    """Return the events by the names of their files."""
    found = {name: json.loads(event.to_json()) for name, event in _situations()}
    for name in (
        "a-program-that-is-known", "ssh-again-and-again", "a-permissive-fence-allows",
        "credentials-are-allowed", "one-of-several-programs", "a-dns-tunnel-is-found",
    ):  # fmt: skip
        found[f"{name}-1.1.0"] = at_version(json.loads(json.dumps(found[name])), "1.1.0")
    return found


def text(event: Any) -> str:
    """Return the text of an event's file."""
    return json.dumps(event, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for stale in FOLDER.glob("*.json"):
        stale.unlink()
    for name, event in situations().items():
        (FOLDER / f"{name}.json").write_text(text(event))
