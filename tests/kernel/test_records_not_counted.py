"""Log records that a program in the sandbox makes with the prefix of the fence."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.netns import named
from tests.kernel.conftest import load
from tests.kernel.serving import connect_to, sandbox, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel

#: Logs packets that the fence allows as if it refused them.
_FORGERY = """
table inet hostile {{
    chain output {{
        type filter hook output priority -300
        ip daddr 127.0.0.9 udp dport 1-9999 log prefix "ocsf-nft:{name}:egress:" group 4001
    }}
}}
"""
#: Sends datagrams on loopback, which the fence allows.
_INNOCENT = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(int(sys.argv[1]), int(sys.argv[2])):
    sock.sendto(b"x", ("127.0.0.9", port))
"""


def _send(name: str, first: int, end: int) -> None:
    command = ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-c", _INNOCENT]
    subprocess.run([*command, str(first), str(end)], check=True, timeout=60)


def _is(code: str) -> Any:
    return lambda each: each["metadata"].get("event_code") == code


async def test_forged_records_are_one_finding_and_frame_no_process(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        await served.service.put(sandbox(other))
        load(named(name), _FORGERY.format(name=name))
        assert await connect_to(other, 443) == {443: "refused"}
        _send(name, 100, 110)
        event = await served.wait_for(_is("records-not-counted"))
        known = len(served.events)
        _send(name, 200, 230)
        assert await connect_to(name, 443) == {443: "refused"}
        real = await served.wait_for(
            lambda each: (
                each["class_uid"] == 4001
                and each["unmapped"]["sandbox"] == name
                and each["dst_endpoint"].get("port") == 443
            )
        )
        status = await served.service.release(name)
        await served.service.release(other)
    assert event["severity"] == "High"
    assert event["unmapped"]["sandbox"] == name
    assert 1 <= event["count"] <= 10
    assert real["count"] == 1
    findings = [each for each in served.events if _is("records-not-counted-finding")(each)]
    assert {each["finding_info"]["uid"] for each in findings} == {
        findings[0]["finding_info"]["uid"]
    }
    assert len([each for each in findings if each["activity_name"] == "Create"]) == 1
    forged = [
        each
        for each in served.events
        if each["class_uid"] == 4001 and each["dst_endpoint"].get("ip") == "127.0.0.9"
    ]
    assert forged
    # The first ones come before a reading of the counters can show that they are forged.
    named_by_forged = [by for by in map(_attribution, forged) if by["value"] != "unknown"]
    assert [by for by in named_by_forged if by["data"]["confidence"] == "High"] == []
    by = _attribution(real)
    assert by["data"]["method"] != "capture" or (real["confidence"], by["data"]["confidence"]) == (
        "High", "High"
    )  # fmt: skip
    later = [each for each in served.events[known:] if each in forged]
    assert [each for each in later if each["dst_endpoint"].get("port", 0) >= 200] == []
    assert served.attempts(other) == {443: 1}
    assert served.attempts(name)[443] == 1
    (egress,) = (each for each in status.balances if each.rule == "egress")
    assert (egress.refused, egress.counter_mismatch) == (1, -len(forged))


def _attribution(event: dict[str, Any]) -> dict[str, Any]:
    (found,) = (each for each in event["enrichments"] if each["type"] == "attribution")
    return dict(found)
