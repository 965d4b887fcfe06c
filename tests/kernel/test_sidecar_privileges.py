"""Privileges of a sidecar: only CAP_NET_ADMIN over its network namespace."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest

from tests.kernel import attempts, command, sidecar
from tests.kernel.attempts import PRIVILEGED, UNPRIVILEGED
from tests.kernel.conftest import nft
from tests.kernel.pod import World
from tests.kernel.sidecar import ADDRESS, POD, PROXY_UID, WORKLOAD_UID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_INSTALL: Final = ("--profile", "sidecar", "--proxy-uid", str(PROXY_UID), "--proxy", ADDRESS)
_UNPRIVILEGED: Final = tuple(kind for kind, *_ in UNPRIVILEGED)
_RAW: Final = tuple(kind for kind, *_ in PRIVILEGED)
_ATTEMPTS: Final = {kind: (protocol, port) for kind, _, protocol, port in UNPRIVILEGED + PRIVILEGED}
#: Read-only sysctls, as a container runtime mounts them.
_READ_ONLY: Final = (
    *("unshare", "--mount", "--propagation=private", "sh", "-c"),
    'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"',
    "container",
)


@pytest.fixture(params=["users of the host", "users of its own"])
def pod(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Lab, list[str]]]:
    """Yield a pod, and the command prefix that runs a command as its root."""
    if request.param == "users of the host":
        lab.sandbox_namespace.call(sidecar.allow_ping_sockets)
        yield lab, ["nsenter", f"--net=/run/netns/{lab.sandbox}"]
    else:
        with sidecar.rootless(lab) as (rootless, as_root):
            rootless.sandbox_namespace.call(sidecar.allow_ping_sockets)
            yield rootless, as_root


#: Reads the counters of a sandbox in the namespace of this process as a service does after a pause.
_READ_AGAIN: Final = """
import sys
from pathlib import Path
from ocsf_nft import rtnetlink
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.state import StateDirectory
with rtnetlink.subscribe() as beside:
    with Counters(StateDirectory(Path(sys.argv[2])).read(sys.argv[1])) as counters:
        counters.enter_beside(beside)
        counters.read()
        counters.close()
        counters.read()
"""


def test_net_admin_suffices_for_all_commands_and_for_users_in_events(
    pod: tuple[Lab, list[str]], state: StateDirectory, tmp_path: Path
) -> None:
    lab, as_root = pod
    output = tmp_path / "events.jsonl"
    where = ("--sandbox", POD, "--state-dir", str(state.path))
    under = [*as_root, *_READ_ONLY, *_confined(0, "net_admin")]
    installed = command.run("install", *where, *_INSTALL, under=under)
    assert installed.code == 0, installed.stderr
    with (
        World(lab) as world,
        command.running(*where, "--output", str(output), under=under) as running,
    ):
        assert command.run("verify", *where, under=under).code == 0
        for uid, capability, kinds in (
            (PROXY_UID, None, _UNPRIVILEGED),
            (WORKLOAD_UID, None, _UNPRIVILEGED),
            (WORKLOAD_UID, "net_raw", _RAW),
            (0, "net_raw", (*_UNPRIVILEGED, *_RAW)),
        ):
            _attempt([*as_root, *_confined(uid, capability)], kinds)
            got_out = sorted(world.reached(10 if uid == PROXY_UID else 0.1))
            assert bool(got_out) == (uid == PROXY_UID)
        assert running.stop(signal.SIGTERM)[0] == 0
    everything = Counter((*_ATTEMPTS[kind],) for kind in (*_UNPRIVILEGED, *_RAW))
    counts = _counts(output)
    assert counts.keys() == {str(WORKLOAD_UID), "0"}
    assert all(of_user == everything for of_user in counts.values())
    assert command.run("status", "--state-dir", str(state.path), under=under).code == 0
    assert command.run("remove", *where, under=under).code == 0
    assert nft(lab.sandbox_namespace, "list", "ruleset") == ""


def test_net_admin_suffices_to_read_the_counters_after_a_pause(
    pod: tuple[Lab, list[str]], state: StateDirectory
) -> None:
    _, as_root = pod
    under = [*as_root, *_READ_ONLY, *_confined(0, "net_admin")]
    where = ("--sandbox", POD, "--state-dir", str(state.path))
    assert command.run("install", *where, *_INSTALL, under=under).code == 0
    subprocess.run(
        [*under, sys.executable, "-c", _READ_AGAIN, POD, str(state.path)],
        check=True,
    )


@pytest.mark.parametrize(
    ("attribution", "needed"),
    # CAP_NET_ADMIN; CAP_SYS_PTRACE to inspect processes. The capture is loaded before.
    [
        ("user", 1 << 12),
        ("socket", 1 << 12 | 1 << 19),
        ("capture", 1 << 12 | 1 << 19),
    ],
)
def test_run_on_its_own_namespace_drops_all_other_capabilities(
    lab: Lab, state: StateDirectory, tmp_path: Path, attribution: str, needed: int
) -> None:
    here = lab.sandbox_namespace
    where = ("--sandbox", POD, "--state-dir", str(state.path))
    assert command.run("install", *where, *_INSTALL, inside=here).code == 0
    output = tmp_path / "events.jsonl"
    more = ("--output", str(output), "--attribution", attribution)
    with command.running(*where, *more, inside=here) as running:
        held: set[str] = set()
        for task in Path(f"/proc/{running.process.pid}/task").iterdir():
            with contextlib.suppress(
                FileNotFoundError, ProcessLookupError
            ):  # the thread has just ended
                held.update(
                    line
                    for line in (task / "status").read_text().splitlines()
                    if line.startswith(("CapPrm", "CapEff", "CapBnd"))
                )
        assert running.stop(signal.SIGTERM)[0] == 0
    assert held == {f"{name}:\t{needed:016x}" for name in ("CapPrm", "CapEff", "CapBnd")}


def test_missing_net_admin_is_reported_in_one_sentence(
    pod: tuple[Lab, list[str]], state: StateDirectory
) -> None:
    _, as_root = pod
    where = ("--sandbox", POD, "--state-dir", str(state.path))
    failed = command.run("install", *where, *_INSTALL, under=[*as_root, *_confined(0, None)])
    assert failed.code == 3
    assert "CAP_NET_ADMIN" in failed.sentence


def test_events_name_the_proxy_as_remedy_without_its_address(
    pod: tuple[Lab, list[str]], state: StateDirectory, tmp_path: Path
) -> None:
    _, as_root = pod
    output = tmp_path / "events.jsonl"
    where = ("--sandbox", POD, "--state-dir", str(state.path))
    options = ("--profile", "sidecar", "--proxy-uid", str(PROXY_UID), "--install")
    with command.running(*where, *options, "--output", str(output), under=as_root) as running:
        _attempt([*as_root, *_confined(WORKLOAD_UID, None)], ("tcp4", "udp6"))
        assert running.stop(signal.SIGTERM)[0] == 0
    (*events,) = _of_users(output)
    assert len(events) == 2
    for event in events:
        assert "proxy_endpoint" not in event
        assert "The sandbox may connect only to its proxy: use the proxy." in event["status_detail"]


def _confined(uid: int, capability: str | None) -> list[str]:
    """Return a command prefix for a user whose programs have at most this capability."""
    given = "" if capability is None else f",+{capability}"
    return [
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps=-all{given}", f"--ambient-caps=-all{given}", f"--bounding-set=-all{given}"),
    ]


def _attempt(under: list[str], kinds: tuple[str, ...]) -> None:
    # Through standard input: the user may have no permission to read this file's folder.
    with Path(attempts.__file__).open("rb") as program:
        subprocess.run(
            [*under, "/usr/bin/python3", "-I", "-", "1", *kinds], stdin=program, check=True
        )


def _of_users(output: Path) -> list[dict[str, Any]]:
    """Return the events about refused packets of a process."""
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    return [event for event in events if event["class_uid"] == 4001 and "actor" in event]


def _counts(output: Path) -> dict[str, Counter[tuple[int, int | None]]]:
    """Return the counts of each user's refused packets by protocol and port."""
    counts: dict[str, Counter[tuple[int, int | None]]] = {}
    for event in _of_users(output):
        what = event["connection_info"]["protocol_num"], event["dst_endpoint"].get("port")
        counts.setdefault(event["actor"]["user"]["uid"], Counter())[what] += event["count"]
    return counts
