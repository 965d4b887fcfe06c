"""A program in a sandbox that takes the NFLOG group of its fence while no service runs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from ocsf_nft.service import log_groups
from ocsf_nft.sources.nflog import held_groups
from tests.kernel.conftest import nft
from tests.kernel.serving import connect_to, sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

_GROUP = 4001
#: Holds the group with a netlink port that is the pid of another process: it may choose any.
_SQUATTER = f"""
import socket, struct, sys
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((int(sys.argv[1]), 0))
payload = struct.pack(">BBH", 0, 0, {_GROUP}) + struct.pack("=HHB3x", 5, 1, 1)
sock.send(struct.pack("=IHHII", 16 + len(payload), 0x401, 5, 0, 0) + payload)
assert struct.unpack_from("=i", sock.recv(4096), 16) == (0,)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _squatter(name: str, port: int = 0) -> Iterator[int]:
    """Hold the group in a namespace by another program; yield its pid."""
    command = ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-c", _SQUATTER, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()


@pytest.mark.parametrize("exclusive", [False, True])
async def test_group_of_a_squatter_is_replaced_and_reported(
    made: tuple[str, ...], tmp_path: Path, *, exclusive: bool
) -> None:
    name = made[0]
    config = sandbox(name, exclusive=exclusive)
    async with serving(tmp_path) as served:
        await served.service.put(config)
        assert await connect_to(name, 443) == {443: "refused"}
    innocent = 1
    with _squatter(name, innocent) as pid:
        assert await connect_to(name, 444) == {444: "refused"}, "its records go to the squatter"
        async with serving(tmp_path) as served:
            event = await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken"
            )
            await until(lambda: served.service.view(name).state == "active")
            group = _group_of(tmp_path, name)
            assert group != _GROUP
            assert named(name).call(held_groups)[_GROUP] == innocent
            assert await connect_to(name, 445) == {445: "refused"}
            await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 445
            )
            # A changed policy, and its fence, stay with the group whose records are read.
            await served.service.put(sandbox(name, exclusive=exclusive, allow=["tcp:192.0.2.1:1"]))
            assert _group_of(tmp_path, name) == group
            assert await connect_to(name, 446) == {446: "refused"}
            recorded = await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 446
            )
            finding = await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken-finding"
            )
            status = await served.service.release(name)
    assert recorded["metadata"]["log_format"] == "nfnetlink_log"
    assert f"(pid {pid})" in event["message"]
    assert event["severity"] == "High"
    assert finding["evidences"][0]["process"]["pid"] == pid
    assert served.attempts(name) == {444: 1, 445: 1, 446: 1}
    assert all(each.counter_mismatch == 0 for each in status.balances)


async def test_fence_of_another_program_gets_another_group(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    config = sandbox(name, install=False)
    spec = sandbox(name).spec()
    installer.install(spec, named(name), StateDirectory(tmp_path), "nflog")
    assert await connect_to(name, 443) == {443: "refused"}
    with _squatter(name):
        async with serving(tmp_path, config) as served:
            await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken"
            )
            assert await connect_to(name, 445) == {445: "refused"}
            await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 445
            )
            group = _group_of(tmp_path, name)
    assert group != _GROUP
    assert f"group {group} " in nft(named(name), "list", "ruleset")
    assert f"group {_GROUP} " not in nft(named(name), "list", "ruleset")
    assert served.attempts(name) == {443: 1, 445: 1}


def test_other_group_is_free_and_not_predictable(made: tuple[str, ...]) -> None:
    with _squatter(made[0]):
        found = {log_groups.other_group([named(made[0])]) for _ in range(20)}
    assert len(found) > 15
    assert all(1024 <= each <= 65535 and each != _GROUP for each in found)


def _group_of(state: Path, name: str) -> int:
    record = StateDirectory(state).read(name)
    assert record is not None
    return record.spec.group
