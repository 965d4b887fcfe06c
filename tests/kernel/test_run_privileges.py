"""Capabilities of a run: it drops those that it does not need, and works with the rest."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution import fallback_chain, socket_method
from tests.kernel import accounts, command, scripted, written
from tests.kernel.test_run import _options, _refused

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

#: CAP_NET_ADMIN, _SYS_ADMIN, and _SYS_PTRACE for the namespace of another user's process. None for
#: BPF: the programs are loaded before the capabilities are dropped.
_OF_A_FENCE = 1 << 12 | 1 << 19 | 1 << 21
#: Fields of /proc/PID/status, and those that both processes have.
_STATUS = ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
_FILTERED = ("NoNewPrivs:\t1", "Seccomp:\t2")
#: On a busy machine an event may not wait for its lookup, so the sender repeats until it ends.
_SENDER = f"""{scripted.START}
import select
s, port = udp(), 0
while not select.select([sys.stdin], [], [], 0.2)[0]:
    port += 1
    with refused: s.sendto(b'x', (TO4[0], port))
"""


@pytest.mark.parametrize(
    ("attribution", "needed"),
    [("capture", _OF_A_FENCE), ("socket", _OF_A_FENCE), ("user", _OF_A_FENCE)],
)
def test_a_run_keeps_only_the_capabilities_that_it_needs(
    lab: Lab, state: StateDirectory, tmp_path: Path, attribution: str, needed: int
) -> None:
    options = _options(lab, state, tmp_path / "events.jsonl")
    more = ("--install", "--transport", "nflog", "--attribution", attribution)
    with command.running(*options, *more) as running:
        held: set[str] = set()
        for task in Path(f"/proc/{running.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it just ended
                held.update(
                    line
                    for line in (task / "status").read_text().splitlines()
                    if line.startswith(_STATUS)
                )
        # The delivery process has the service's filter of system calls, and its own.
        children: list[str] = []

        def is_alone() -> bool:  # nft runs too, for a short time
            children[:] = _children(running.process.pid)
            return len(children) == 1

        accounts.until(is_alone)
        child = {line for line in children[0].splitlines() if line.startswith(_STATUS)}
        assert running.stop(signal.SIGTERM)[0] == 0
    sets = (f"{name}:\t{needed:016x}" for name in ("CapPrm", "CapEff", "CapBnd"))
    assert held == {*sets, *_FILTERED, "Seccomp_filters:\t1"}
    # The service can't empty the bounding set any more. It has no effect without privileges.
    bounding = f"CapBnd:\t{needed:016x}"
    sets = (f"{name}:\t{0:016x}" for name in ("CapPrm", "CapEff"))
    assert child == {*sets, bounding, *_FILTERED, "Seccomp_filters:\t2"}


@pytest.mark.parametrize(("attribution", "confidence"), [("capture", "High"), ("socket", "Medium")])
def test_run_with_these_capabilities_names_the_process_of_another_user(
    lab: Lab,
    state: StateDirectory,
    tmp_path: Path,
    attribution: str,
    confidence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine a record may come before the event of its sender.
    monkeypatch.setattr(fallback_chain, "_EVENT_DELAY_SECONDS", 2.0)
    # And its search for the socket's process takes longer.
    monkeypatch.setattr(socket_method, "_BUDGET_NS", 10_000_000_000)
    output = tmp_path / "events.jsonl"
    options = (*_options(lab, state, output), "--install", "--attribution", attribution)
    by = ("/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *scripted.BY)
    with command.running(*options) as running:
        sender = lab.sandbox_namespace.call(
            lambda: subprocess.Popen([*by, _SENDER], stdin=subprocess.PIPE)
        )
        with sender:
            accounts.until(lambda: bool(_named(written.so_far(output))))
            sender.communicate(timeout=60)
        assert running.stop(signal.SIGTERM)[0] == 0
    events = written.events(output)
    if attribution == "capture":
        assert len(_named(events)) == len(_refused(events)), "a capture names each sender"
    for event in _named(events):
        assert event["actor"]["process"]["pid"] == sender.pid
        assert event["actor"]["process"]["file"]["path"] == scripted.PYTHON
        assert event["enrichments"][0]["data"]["confidence"] == confidence


def _children(pid: int) -> list[str]:
    """Return the status of each child process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it just ended
            if f"\nPPid:\t{pid}\n" in (status := path.read_text()):
                found.append(status)
    return found


def _named(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in _refused(events) if "process" in event["actor"]]
