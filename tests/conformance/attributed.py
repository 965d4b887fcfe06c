"""Attributions: processes of every kind, every method, and attempts with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ocsf_nft.attempt import Attempt
from ocsf_nft.process import Attribution, Container, Process, Seen
from tests.conformance.corpus import ATTEMPTS, CONTAINER, RECORDS, window

#: Text that must not break a line, a terminal or a frame.
HOSTILE: Final = '\x1b]0;x\x07\x1b[2J\r\n"},\\{"\u202e\u2028\x85\ud800\udc80\x00'
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
POD: Final = "0b6f2f0c-5d0e-4c3e-8a55-6f4b1f0c9d1a"

_AGENT: Final = Process(pid=4100, name="agent", path="/opt/agent/bin/agent")
_ALL_OF_IT: Final = Process(
    pid=4242,
    tid=4243,
    name="curl",
    path="/usr/bin/curl",
    is_deleted=False,
    sha256=SHA256,
    cmd_line="curl https://example.com/",
    working_directory="/home/agent",
    created_ns=1_767_225_599_000_000_000,
    namespace_pid=42,
    uid=1000,
    user_name="agent",
    gid=1000,
    group_name="agents",
    container=replace(CONTAINER, pod_uid=POD),
    unit="agent@1.service",
    ancestors=(Process(pid=4200, name="bash", path="/usr/bin/bash", is_deleted=False), _AGENT),
)
PROCESSES: Final = {
    "a pid": Process(pid=4242),
    "a name": Process(pid=4242, name="curl", uid=1000),
    "all of it": _ALL_OF_IT,
    "another user": Process(pid=4242, path="/usr/bin/sudo", uid=0, user_name="root"),
    "another group": Process(pid=4242, uid=1000, gid=0, group_name="root"),
    "a group without a user": Process(pid=4242, gid=1000, group_name="agents"),
    "a deleted program": Process(pid=4242, path="/run/x", is_deleted=True, ancestors=(_AGENT,)),
    "a directory for a program": Process(pid=4242, name="x", path="/", sha256=SHA256),
    "a hash alone": Process(pid=4242, name="x", sha256=SHA256.upper()),
    "a hash that is none": Process(pid=4242, path="/run/x", sha256=SHA256[1:]),
    "in memory": Process(pid=4242, name="5", path="memfd:a/b/", is_deleted=True, sha256=SHA256),
    "in memory, without a name": Process(
        pid=4242, path="memfd:", ancestors=(Process(pid=4200, path="memfd:loader"),)
    ),
    "a unit": Process(pid=4242, name="curl", unit="user@1000.service"),
    "a container without a name": Process(pid=4242, container=Container(runtime="runc")),
    "a container with a name": Process(pid=4242, container=Container(name="c", image_name="i")),
    "an unknown container in a pod": Process(pid=4242, container=Container(pod_uid=POD)),
    "a pod that no API server knows": Process(
        pid=4242, container=Container(uid="3f4e0c2c9d1a", pod_uid=POD.replace("-", ""))
    ),
    "hostile": Process(
        pid=4242,
        tid=1 << 22,
        name=HOSTILE,
        path=f"/run/{HOSTILE}",
        sha256=HOSTILE,
        cmd_line=HOSTILE,
        working_directory=HOSTILE,
        user_name=HOSTILE,
        uid=1000,
        gid=1000,
        group_name=HOSTILE,
        container=Container(
            uid=HOSTILE, name=HOSTILE, runtime=HOSTILE, image_uid=HOSTILE, pod_uid=HOSTILE
        ),
        unit=HOSTILE,
        ancestors=(Process(pid=1, name=HOSTILE, path=f"{HOSTILE}/x"),),
    ),
    "hostile, in memory": Process(pid=4242, path=f"memfd:/{HOSTILE}/"),
    "long": Process(pid=4242, name="x" * 4096, path="/" + "y" * 4095, cmd_line="z" * 4096),
}


def done_by(process: Process) -> Attribution:
    """Return an attribution of high confidence, from the capture in the kernel."""
    return Attribution(
        method="capture",
        confidence="high",
        reason="the kernel named the process that made the call",
        process=process,
    )


BY_THE_USER: Final = Attribution(
    method="user",
    confidence="low",
    reason="this kernel can't be asked, and the socket was closed",
    user_name="agent",
    group_name="agents",
)
ONE_OF_SEVERAL: Final = Attribution(
    method="socket",
    confidence="low",
    reason="several processes had the socket when the record was read",
    seen=(
        Seen(process=Process(pid=4200, path="/usr/bin/bash", cmd_line="bash -c 'curl & wait'")),
        Seen(process=_ALL_OF_IT),
        Seen(process=Process(pid=4300, name="worker")),
    ),
)
SEVERAL_IN_ONE_WINDOW: Final = Attribution(
    method="capture",
    confidence="medium",
    reason="the kernel named the process of each call, and the record is of the latest",
    process=_ALL_OF_IT,
    seen=(
        Seen(process=_ALL_OF_IT, calls=20),
        Seen(process=Process(pid=4300, path="memfd:worker"), calls=6),
    ),
    unnamed=2,
)
ATTRIBUTIONS: Final = {
    "by the user": BY_THE_USER,
    "by the user, without a confidence": replace(BY_THE_USER, confidence=None),
    "unknown": Attribution(method="none", reason="the record names no user"),
    "by a user of any name": replace(BY_THE_USER, user_name=HOSTILE, group_name=HOSTILE),
    "by the user of the socket": replace(
        done_by(PROCESSES["another user"]), user_name="agent", group_name="agents"
    ),
    "unknown, for any reason": Attribution(method="none", reason=HOSTILE),
    "one of several": ONE_OF_SEVERAL,
    "one that it may have been": replace(ONE_OF_SEVERAL, seen=ONE_OF_SEVERAL.seen[:1]),
    "many without a name": replace(ONE_OF_SEVERAL, seen=(), unnamed=4711),
    "several in one window": SEVERAL_IN_ONE_WINDOW,
    "several, and none of them first": replace(SEVERAL_IN_ONE_WINDOW, process=None),
    "several, hostile": replace(
        ONE_OF_SEVERAL, seen=(Seen(process=PROCESSES["hostile"], calls=1 << 62),) * 2
    ),
    **{
        f"by the socket, {confidence}": replace(
            done_by(_ALL_OF_IT), method="socket", confidence=confidence
        )
        for confidence in ("high", "medium", "low")
    },
}
ATTRIBUTED: Final = {
    f"{name}, {way}": replace(Attempt.of(RECORDS[way]), attribution=attribution)
    for name, attribution in (
        *((name, done_by(process)) for name, process in PROCESSES.items()),
        *ATTRIBUTIONS.items(),
    )
    for way in ("tcp4", "tcp without a user", "udp6 quic", "forward", "link 88b5", "ingress")
} | {
    f"{name}, {way}": replace(attempt, attribution=attribution)
    for name, attribution in ATTRIBUTIONS.items()
    for way, attempt in (
        ("many times", window(RECORDS["tcp4"])),
        *((way, ATTEMPTS[way]) for way in ("counted tcp4", "many of egress, in full")),
    )
}
