"""Where a rung is not to be had, the next one stands, and says why."""

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
from ocsf_nft.attribution import bpf_capture, libbpf, socket_method
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
_STANDS = """
import asyncio, json
from functools import partial
from pathlib import Path
from ocsf_nft.attribution import capture
from ocsf_nft.attribution.fallback_chain import Ladder
from ocsf_nft.netns import Namespace
async def stand():
    async with Ladder({"sb": Namespace()}) as ladder:
        print(json.dumps([ladder.rung, ladder.reason]))
asyncio.run(stand())
"""


def _libbpf() -> str:
    """The file of the library, as it is loaded."""
    libbpf.library()
    mapped = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return next(line.split()[-1] for line in mapped if "libbpf" in line)


_NO_CGROUP2 = 'awk \'$9 == "cgroup2" || $10 == "cgroup2" {print $5}\' /proc/self/mountinfo'


@pytest.fixture(scope="module")
def attackers(tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    return swarm.build(tmp_path_factory.mktemp("swarm"), 10)


@pytest.fixture
def stays() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """What it is given is ended with the test, and the only child of it before."""
    kept: list[subprocess.Popen[str]] = []
    yield kept.append
    for each in kept:
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
def test_without_something_the_next_rung_stands_and_says_why(
    host: list[str], why: str | None
) -> None:
    rung, reason = _stood(host, _STANDS)
    assert rung == ("socket" if why else "capture")
    assert (why or "") in (reason or "")


def _stood(host: list[str], script: str) -> tuple[str, str | None]:
    """On which rung a ladder stands there, and why on no better one."""
    done = subprocess.run(
        [*host, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=_ROOT,
    )
    assert done.stderr == ""
    # What is logged comes before it.
    rung, reason = json.loads(done.stdout.splitlines()[-1])
    return rung, reason


@pytest.mark.parametrize(
    ("needs_it", "why"),
    [
        ("", None),
        ("Ladder = partial(Ladder, permissive={'sb'})", "cgroup v2 is not mounted"),
        ("capture._TYPES = Path('/nowhere')", "cgroup v2 is not mounted"),
    ],
    ids=["what is refused", "what is let pass", "no types"],
)
def test_without_cgroup_v2_what_is_refused_is_told_of_and_else_the_next_rung_stands(
    needs_it: str, why: str | None
) -> None:
    script = _STANDS.replace("async def stand", f"{needs_it}\nasync def stand")
    without = f'umount -l $({_NO_CGROUP2}); exec "$@"'
    rung, reason = _stood(["unshare", "-nm", "sh", "-c", without, "sh"], script)
    assert rung == ("socket" if why else "capture")
    assert (why or "") in (reason or "")


async def test_on_a_kernel_that_tells_no_types_the_right_numbers_are_told(
    lab: Lab, state: StateDirectory, attackers: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TCP; of UDP those are told that may have sent the packet."""
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


async def test_a_capture_that_somebody_ends_is_told_of_and_the_next_rung_names_who_stays(
    lab: Lab,
    attackers: Swarm,
    tmp_path: Path,
    stays: Callable[[subprocess.Popen[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is where calls are told: the programs that tell what is refused nobody can detach.

    However slow this machine is, there is time for a lookup.
    """
    monkeypatch.setattr(socket_method, "_BUDGET_NS", 10**10)
    sandbox = {
        "name": "agent",
        "netns": lab.sandbox,
        "proxy": [f"{GATEWAY4}:{PROXY_PORT}"],
        "install": True,
        "permissive": True,
    }
    wanted = {
        "sandbox": [sandbox],
        "state_dir": str(tmp_path),
        "attribution": {"wait_ms": 10_000},
    }
    config = ocsf_nft.parse(wanted, where="test")
    events = []
    async with ocsf_nft.Service(config, iterates=True) as service, asyncio.timeout(30):
        captured = service.ladder._captured
        assert captured is not None
        loaded = captured._capture._loaded
        # As `bpftool link detach` does.
        detach = loaded._library.bpf_link__detach
        detach.argtypes = (ctypes.c_void_p,)
        assert detach(loaded._links[-1]) == 0
        async for event in service:
            events.append(event)
            if event.get("activity_name") == "Attribution Degraded":
                numbers = range(FIRST, FIRST + 1)
                stays(attackers.start(lab.sandbox_namespace, numbers, UDP | STAYS))
            if event["class_uid"] == 4001 and event["connection_info"]["protocol_num"] == 17:
                service.stop()
        assert service.ladder.rung == "socket"
    (fell,) = (each for each in events if each.get("activity_name") == "Attribution Degraded")
    assert "has detached the BPF program" in fell["status_detail"]
    assert fell["unmapped"]["rung"] == "socket"
    (attempt,) = (
        each
        for each in events
        if each["class_uid"] == 4001 and each["connection_info"]["protocol_num"] == 17
    )
    (how,) = attempt["enrichments"]
    assert how["data"]["rung"] == "socket"
    # Root may send as if from anybody's socket: so it is not more than one that it may have been.
    (process,) = how["data"]["processes"]
    assert process["path"] == str(attackers.programs[FIRST % 10])
