"""A day of attacks and of ordinary work in the sandboxes of one service, and what really happened.

Each attack has its own sandbox, user and program, which is a copy of Python with another name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ocsf_nft
from ocsf_nft import lab
from ocsf_nft.demo.proxy import stub_proxy
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from tests.kernel import accounts, attack_scripts, command, namespaces, written

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    import pytest

#: Sandboxes that come and end.
SHORT_LIVED: Final = 20
SCANNERS: Final = 25
#: A scan ends so long after its last flow; by default a minute.
_SCAN_SECONDS: Final = 20
_LONG_SECONDS: Final = 120.0
_PYTHON: Final = Path("/usr/bin/python3").resolve()
_CONFIG: Final = """
control = "{folder}/control.sock"
state_dir = "{folder}/state"
[attribution]
wait_ms = 1000
[[sink]]
path = "{folder}/events.jsonl"
[[sink]]
path = "{folder}/lean.jsonl"
detail = "lean"
[[sink]]
type = "parquet"
directory = "{folder}"
region = "eu-west-1"
"""


@dataclass(frozen=True, slots=True)
class Done:
    """Actions of a program: its pid, its packets, and their times (ns since the epoch)."""

    pid: int
    packets: int
    begun: int
    ended: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Attack that is to be a finding: what really happened."""

    sandbox: str
    #: ``metadata.event_code`` of the finding.
    code: str
    program: str
    uid: int
    done: tuple[Done, ...]


@dataclass(slots=True)
class Day:
    """Attacks of a day, and what the service has written."""

    folder: Path
    attacks: list[Attack] = field(default_factory=list)
    #: Packets of ordinary programs, by sandbox.
    ordinary: dict[str, int] = field(default_factory=dict)
    #: The kernel's counts by sandbox and rule, of fences without a change by a program.
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    #: The last counts of the service, by sandbox.
    final: dict[str, int] = field(default_factory=dict)
    messages: str = ""

    def program(self, role: str) -> Path:
        """Return the program of a sandbox."""
        return self.folder / ("worker" if role.startswith("short") else role)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events of the sink with full detail."""
        return written.distinct(written.events(self.folder / "events.jsonl"))

    @property
    def lean_events(self) -> list[dict[str, Any]]:
        """Return the events of the sink with lean detail."""
        return written.distinct(written.events(self.folder / "lean.jsonl"))


@contextlib.contextmanager
def lived(patch: pytest.MonkeyPatch) -> Iterator[Day]:
    """Run the service for a day, and yield what happened."""
    for name, value in command.LONG_STOP.items():
        patch.setattr(name, value)
    patch.setattr("ocsf_nft.flows.scans.WITHIN_NS", _SCAN_SECONDS * 10**9)
    # A busy machine is no fault of the service.
    patch.setattr("ocsf_nft.service.gap_reports._LATE_NS", 60 * 10**9)
    with tempfile.TemporaryDirectory(prefix="day") as folder:
        day = Day(Path(folder))
        day.folder.chmod(0o755)  # the users execute their programs there
        config = day.folder / "ocsf-nft.toml"
        config.write_text(_CONFIG.format(folder=folder))
        with command.running("--config", str(config)) as service:
            asyncio.run(_Host(day).live())
            code, day.messages = service.stop(signal.SIGTERM)
        assert code == 0, day.messages
        yield day


class _Host:
    """Machine with sandboxes: it starts the programs in them, and calls the service."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self._client = ocsf_nft.Client(day.folder / "control.sock")
        self._names: dict[str, str] = {}
        self._starting = asyncio.Semaphore(4)

    async def live(self) -> None:
        """Drive the day to its end: all sandboxes are released then."""
        roles = ("thief", "tunnel", "scanner", "altered", "flushed", "removed", "flood", "leak")
        with namespaces.names(len(roles) + SHORT_LIVED) as names, lab.throwaway() as of_worker:
            async with self._client, stub_proxy(of_worker.gateway_namespace):
                for role, name in zip(roles, names, strict=False):
                    await asyncio.to_thread(namespaces.make, name)
                    keys = {
                        "leak": {"permissive": True},
                        "removed": {"self_heal": False},
                    }
                    await self._add(role, name, **keys.get(role, {}))
                await self._add(
                    "worker", of_worker.sandbox, proxy=[f"{lab.GATEWAY4}:{lab.PROXY_PORT}"]
                )
                async with asyncio.TaskGroup() as group:
                    for work in (
                        self._attack("thief", "cloud-metadata-finding", 1001, "steal"),
                        self._attack("tunnel", "dns-tunnel-finding", 1002, "tunnel"),
                        self._scan(),
                        self._tamper("altered", "insert rule inet ocsf_nft output accept"),
                        self._tamper("flushed", "flush ruleset"),
                        self._tamper("removed", "flush ruleset"),
                        self._attack("flood", "bypass-finding", 1004, "flood"),
                        self._attack("leak", "permissive-finding", 1005, "leak"),
                        self._work("worker", 1006, "work"),
                        *map(self._live_shortly, names[len(roles) :]),
                    ):
                        group.create_task(work)
                await self._until(lambda events: _has(events, "removed", "fence-removed-finding"))
                await asyncio.to_thread(self._install_again, "removed")
                await self._until(self._all_are_inactive)
                for role in (*roles, "worker"):
                    if role not in {"altered", "flushed", "removed"}:
                        self.day.counted[role] = await asyncio.to_thread(self._counted, role)
                    await self._release(role)

    async def _add(self, role: str, name: str, **keys: Any) -> None:
        self._names[role] = name
        program = self.day.program(role)
        if not program.exists():
            await asyncio.to_thread(shutil.copy, _PYTHON, program)
        given = {"proxy": [namespaces.PROXY], "labels": {"team": role}} | keys
        await self._client.put(role, netns=name, **given)

    async def _release(self, role: str) -> None:
        final = await self._client.release(role)
        assert all(each["counter_mismatch"] == 0 for each in final["counts"]), final
        self.day.final[role] = sum(each["refused"] + each["allowed"] for each in final["counts"])

    def _install_again(self, role: str) -> None:
        """Install a removed fence, as its event advises."""
        where = ("--sandbox", role, "--netns", self._names[role], "--proxy", namespaces.PROXY)
        state = str(self.day.folder / "state")
        done = command.run("install", *where, "--state-dir", state)
        assert done.code == 0, done.stderr

    def _counted(self, role: str) -> Counter[str]:
        installed = StateDirectory(self.day.folder / "state").read(role)
        assert installed is not None
        return accounts.refused_by(installed)

    async def _attack(self, role: str, code: str, uid: int, *arguments: str) -> None:
        done = await self._run(role, uid, *arguments)
        self._note(role, code, uid, done)

    async def _scan(self) -> None:
        done = await asyncio.gather(
            *(self._run("scanner", 1003, "scan", str(number)) for number in range(SCANNERS))
        )
        self._note("scanner", "scan-finding", 1003, *done)

    def _note(self, role: str, code: str, uid: int, *done: Done) -> None:
        program = str(self.day.program(role))
        self.day.attacks.append(
            Attack(sandbox=role, code=code, program=program, uid=uid, done=done)
        )

    async def _tamper(self, role: str, ruleset: str) -> None:
        """Change the fence from inside the sandbox, as root."""
        begun = time.time_ns()
        program = shutil.which("nft")
        assert program is not None
        process = await asyncio.to_thread(
            named(self._names[role]).call, lambda: subprocess.Popen([program, ruleset])
        )
        assert await asyncio.to_thread(process.wait, _LONG_SECONDS) == 0
        done = Done(process.pid, 1, begun, time.time_ns())
        code = "fence-removed-finding" if role == "removed" else "tampering-finding"
        self.day.attacks.append(
            Attack(sandbox=role, code=code, program=program, uid=0, done=(done,))
        )

    async def _work(self, role: str, uid: int, action: str) -> None:
        done = await self._run(role, uid, action)
        self.day.ordinary[role] = done.packets

    async def _live_shortly(self, name: str) -> None:
        """Make a sandbox, use it, and end it: by its release, or by the end of its namespace."""
        role = f"short-{name.rpartition('-')[2]}"
        async with self._starting:
            await asyncio.to_thread(namespaces.make, name)
            await self._add(role, name)
            await self._work(role, 1007, "single")
            if int(name.rpartition("-")[2]) % 2:
                await self._release(role)
                await asyncio.to_thread(namespaces.delete, name)
                return
            await asyncio.to_thread(namespaces.delete, name)
            await self._until(lambda events: any(_is_end_of(event, role) for event in events))

    async def _run(self, role: str, uid: int, *arguments: str) -> Done:
        """Run the program of a sandbox in it, and return what it did."""
        return await asyncio.to_thread(self._run_in_thread, role, uid, *arguments)

    def _run_in_thread(self, role: str, uid: int, *arguments: str) -> Done:
        command_line = [str(self.day.program(role)), "-I", "-", *arguments]
        # Through standard input: the user may have no permission to read this file's folder.
        with Path(attack_scripts.__file__).open("rb") as source:
            process = named(self._names[role]).call(
                lambda: subprocess.Popen(
                    command_line,
                    stdin=source,
                    stdout=subprocess.PIPE,
                    user=uid,
                    group=uid,
                    extra_groups=[],
                )
            )
        output, _ = process.communicate(timeout=_LONG_SECONDS)
        assert process.returncode == 0
        return Done(**json.loads(output))

    async def _until(self, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
        path = self.day.folder / "events.jsonl"
        async with asyncio.timeout(_LONG_SECONDS):
            while not holds(await asyncio.to_thread(written.so_far, path)):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.2)

    def _all_are_inactive(self, events: list[dict[str, Any]]) -> bool:
        """Return True if each finding is there and inactive.

        A restored fence becomes inactive after ten minutes, or when the service stops.
        """
        found = {_subject(event): event for event in events if event["class_uid"] == 2004}
        return all(
            (attack.sandbox, attack.code) in found
            and (
                attack.code == "tampering-finding"
                or found[attack.sandbox, attack.code]["status_detail"].startswith("Inactive")
            )
            for attack in self.day.attacks
        )


def _subject(event: dict[str, Any]) -> tuple[str, str]:
    return event["unmapped"]["sandbox"], event["metadata"]["event_code"]


def _has(events: list[dict[str, Any]], role: str, code: str) -> bool:
    return any(event["class_uid"] == 2004 and _subject(event) == (role, code) for event in events)


def _is_end_of(event: dict[str, Any], role: str) -> bool:
    return event["class_uid"] == 5019 and _subject(event) == (role, "sandbox-ended")
