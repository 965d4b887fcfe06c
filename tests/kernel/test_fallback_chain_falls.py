"""Fallback of the attribution methods: the next method is used, and the reason is given."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ocsf_nft
from ocsf_nft import libbpf
from ocsf_nft.attribution import bpf_capture, socket_method
from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from tests.kernel import swarm
from tests.kernel.swarm import CONNECTED, FIRST, STAYS, UDP
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from tests.kernel.swarm import Swarm

pytestmark = pytest.mark.kernel

_ROOT = Path(__file__).parents[2]
_OPENS = """
import asyncio, json
from pathlib import Path
from ocsf_nft.attribution import bpf_capture
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.netns import Namespace
IS_PERMISSIVE = False
async def open_chain():
    async with FallbackChain() as chain:
        attached = await chain.attach(Namespace(), is_permissive=IS_PERMISSIVE)
        method = "socket" if attached.reason else chain.method
        print(json.dumps([method, attached.reason or chain.reason]))
asyncio.run(open_chain())
"""


def _libbpf() -> str:
    """Return the file from which the library is loaded."""
    libbpf.load_library()
    mapped = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return next(line.split()[-1] for line in mapped if "libbpf" in line)


_NO_CGROUP2 = 'awk \'$9 == "cgroup2" || $10 == "cgroup2" {print $5}\' /proc/self/mountinfo'


@pytest.fixture(scope="module")
def attackers(tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    return swarm.build(tmp_path_factory.mktemp("swarm"), 10)


@pytest.fixture
def stays() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """End the given processes with the test, after their only children."""
    started: list[subprocess.Popen[str]] = []
    yield started.append
    for each in started:
        children = Path(f"/proc/{each.pid}/task/{each.pid}/children").read_text("ascii")
        for child in map(int, children.split()):
            os.kill(child, signal.SIGKILL)
        each.communicate(timeout=10)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        (["unshare", "-n"], None),
        (["unshare", "-Urn"], "Operation not permitted"),
        (
            ["unshare", "-n", "setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin"],
            "Operation not permitted",
        ),
        (
            ["unshare", "-nm", "sh", "-c", f'mount --bind /dev/null {_libbpf()}; exec "$@"', "sh"],
            "libbpf is missing",
        ),
    ],
    ids=["nothing", "privilege", "CAP_BPF", "libbpf"],
)
def test_host_without_a_requirement_uses_the_next_method_with_a_reason(
    host: list[str], why: str | None
) -> None:
    method, reason = _method(host, _OPENS)
    assert method == ("socket" if why else "capture")
    assert (why or "") in (reason or "")


def _method(host: list[str], script: str) -> tuple[str, str | None]:
    """Return the method that a chain uses on a host, and the reason why no better one."""
    done = subprocess.run(
        [*host, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=_ROOT,
    )
    assert done.stderr == ""
    # Log messages come before the result.
    method, reason = json.loads(done.stdout.splitlines()[-1])
    return method, reason


@pytest.mark.parametrize(
    ("needs_it", "why"),
    [
        ("", None),
        (
            "IS_PERMISSIVE = True",
            "cgroup v2 is not mounted",
        ),
        ("bpf_capture._TYPES = Path('/nowhere')", "cgroup v2 is not mounted"),
    ],
    ids=["refused packets", "allowed packets", "no types"],
)
def test_host_without_cgroup_v2_captures_only_refused_packets(
    needs_it: str, why: str | None
) -> None:
    script = _OPENS.replace("async def open_chain", f"{needs_it}\nasync def open_chain")
    without = f'umount -l $({_NO_CGROUP2}); exec "$@"'
    method, reason = _method(["unshare", "-nm", "sh", "-c", without, "sh"], script)
    assert method == ("socket" if why else "capture")
    assert (why or "") in (reason or "")


async def test_kernel_without_types_reports_the_right_process_numbers(
    lab: Lab, state: StateDirectory, attackers: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP senders are named; for UDP the possible senders are listed."""
    monkeypatch.setattr(bpf_capture, "_TYPES", Path("/nowhere"))
    fence(lab, state, monkeypatch)
    numbers = range(FIRST, FIRST + 1000)
    async with watching(lab) as watched:
        running = [
            attackers.start(lab.sandbox_namespace, numbers, flags, mask=3 | CONNECTED)
            for flags in (0, UDP)
        ]
        tcp, udp = [await asyncio.to_thread(attackers.truth, each) for each in running]
        await watched.until(2 * len(numbers))
    named = listed = 0
    for record, by in watched.found:
        number = swarm.number_of(record)
        if number is None or number not in tcp:
            continue
        if record.protocol == 17:
            assert by.process is None
            seen = {each.process.pid for each in by.seen if each.process is not None}
            listed += udp[number].pid in seen
        elif by.process is not None:
            named += 1
            assert (by.process.pid, by.process.path) == (tcp[number].pid, None), (record, by)
            assert by.process.name == Path(tcp[number].path).name
    assert named >= 0.95 * len(numbers)
    assert listed >= 0.5 * len(numbers)


async def test_detached_capture_is_reported_and_the_next_method_names_a_running_process(
    lab: Lab,
    attackers: Swarm,
    tmp_path: Path,
    stays: Callable[[subprocess.Popen[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls are captured here: no other process can detach the programs for refused packets.

    The lookup gets enough time for a slow machine. The test does not wait until it is sure that no
    packet is from before the lookup.
    """
    monkeypatch.setattr(socket_method, "_BUDGET_NS", 10**10)
    monkeypatch.setattr(socket_method, "_LATE_NS", 0)
    sandbox = {
        "name": "agent",
        "netns": lab.sandbox,
        "proxy": [f"{GATEWAY4}:{PROXY_PORT}"],
        "install": True,
        "permissive": True,
    }
    settings = {
        "sandbox": [sandbox],
        "state_dir": str(tmp_path),
        "attribution": {"wait_ms": 10_000},
    }
    config = ocsf_nft.parse(settings, where="test")
    events = []
    async with ocsf_nft.Service(config, iterates=True) as service, asyncio.timeout(30):
        capture = service.fallback_chain._capture
        assert capture is not None
        loaded = capture.capture._loaded
        # As `bpftool link detach` does.
        detach = loaded._library.bpf_link__detach
        detach.argtypes = (ctypes.c_void_p,)
        assert detach(loaded._links[-1]) == 0
        async for event in service:
            events.append(event)
            if event.get("activity_name") == "Attribution Degraded":
                assert service.fallback_chain.method == "socket"
                numbers = range(FIRST, FIRST + 1)
                stays(attackers.start(lab.sandbox_namespace, numbers, UDP | STAYS))
            if event["class_uid"] == 4001 and event["connection_info"]["protocol_num"] == 17:
                service.stop()
    (degraded,) = (each for each in events if each.get("activity_name") == "Attribution Degraded")
    assert "has detached the BPF program" in degraded["status_detail"]
    assert degraded["unmapped"]["method"] == "socket"
    (attempt,) = (
        each
        for each in events
        if each["class_uid"] == 4001 and each["connection_info"]["protocol_num"] == 17
    )
    (how,) = attempt["enrichments"]
    assert how["data"]["method"] == "socket"
    # Root can imitate packets of any socket, so the process is only a candidate.
    (process,) = how["data"]["processes"]
    assert process["path"] == str(attackers.programs[FIRST % 10])
