"""Run of the matrix: each variant against each form of a fence, under one service."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from tests.kernel import command
from tests.kernel.ways import far
from tests.kernel.ways.variant import (
    FORMS,
    GATEWAY_MAC,
    MAC,
    PROXY_PORT,
    WEB_PORT,
    Form,
    Seat,
)
from tests.kernel.ways.variants import VARIANTS
from tests.kernel.ways.world import UPLINK4, UPLINK6, World, world

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterator, Sequence

    from tests.kernel.ways.variant import Attacker

#: ``stopped``: no byte of the payload arrived. ``reported``: it arrived, and an event says so.
#: ``allowed``: it arrived only where the policy lets packets go: at the proxy, or, from a VM, at
#: the internet with the host's address. ``OUT``: it arrived, and nothing says so. ``works`` and
#: ``fails`` are for a namespace without a fence.
Verdict: TypeAlias = Literal["stopped", "reported", "allowed", "OUT", "works", "fails"]

#: Situations that a report may be about. An event about a blocked packet is none: it says that
#: the packet was blocked, which is false if it arrived.
DUE: Final = frozenset({
    "surroundings-changed", "surroundings-changed-finding",
    "fence-bypassed", "fence-bypassed-finding",
    "tampering-finding", "fence-removed-finding", "restore-stopped-finding",
    "fence-altered", "fence-restored", "fence-removed-by-other", "restore-stopped",
})  # fmt: skip
SEVERITIES: Final = frozenset({"Medium", "High", "Critical", "Fatal"})
REPORT_SECONDS: Final = 5.0
#: More time on a machine with several runnable processes for each processor.
_BUSY_TIMES: Final = 4.0
#: Silence after which the stream of events has ended, and the longest wait for it.
_SILENT_SECONDS: Final = 1.5
_LATE_SECONDS: Final = 90.0
#: Forms of each host.
_HOSTS: Final[tuple[frozenset[Form], ...]] = (
    frozenset({"open", "unguarded", "tap"}),
    frozenset({"guarded", "sidecar"}),
)
_PROXY_USER: Final = 3128
_QUIET_SECONDS: Final = 0.3
#: Attacks that share a seat: those that are expected to bring nothing out, and the others.
_SHARING: Final = 20
_SERIES: Final = 3
#: Forms where an event can report a change of the namespace.
_WATCHED: Final = frozenset({"guarded", "unguarded", "sidecar"})


@dataclass(frozen=True)
class Outcome:
    """Verdict on a variant in a form, with its reason for a person."""

    verdict: Verdict
    detail: str = ""
    error: str = ""


@dataclass(frozen=True)
class Job:
    """Attack in a seat."""

    number: int
    variant: str
    seat: Seat
    #: Time after it in which nothing else happens in its seat, in seconds.
    pause: float


@dataclass(frozen=True)
class _Group:
    """Variants that run one after the other in a seat, with a pause after each."""

    form: Form
    keys: list[str]
    pause: float


@dataclass(frozen=True)
class _Report:
    arrived: float
    event: dict[str, Any]

    @property
    def happened(self) -> float:
        """Return the time of the event, in seconds since the epoch."""
        return float(self.event["time"]) / 1000

    def is_about(self, seat: Seat) -> bool:
        sandbox = (self.event.get("unmapped") or {}).get("sandbox")
        return bool(sandbox == _name(seat))

    def is_due(self) -> bool:
        code = self.event["metadata"].get("event_code")
        return code in DUE and self.event["severity"] in SEVERITIES


def run(
    folder: Path,
    pairs: Collection[tuple[str, Form]],
    loud: Container[tuple[str, Form]],
) -> dict[tuple[str, Form], Outcome]:
    """Run variants in forms, and return the outcome of each pair.

    Two services on two hosts halve the time until all fences are active. A report is about a seat.
    So variants in ``loud`` are followed by a pause for their reports, and few of them share a seat.
    The others are expected to bring nothing out: many share a seat, and none of them can be found
    as reported.
    """
    found: dict[tuple[str, Form], Outcome] = {}
    found_by = []
    with ThreadPoolExecutor(len(_HOSTS)) as pool:
        for number, forms in enumerate(_HOSTS):
            of_host = [each for each in pairs if each[1] in forms]
            (folder / str(number)).mkdir()
            found_by.append(pool.submit(_run, folder / str(number), of_host, loud))
    for each in found_by:
        found |= each.result()
    return found


def _run(
    folder: Path,
    pairs: Collection[tuple[str, Form]],
    loud: Container[tuple[str, Form]],
) -> dict[tuple[str, Form], Outcome]:
    groups = [
        group
        for form in FORMS
        for group in _groups([key for key, where in pairs if where == form], form, loud)
    ]
    plan = [(each.form, VARIANTS[each.keys[0]].attacker == "admin") for each in groups]
    if not plan:
        return {}
    with world(plan) as made:
        jobs: list[Job] = []
        for seat, group in zip(made.seats, groups, strict=True):
            for key in group.keys:
                jobs.append(Job(len(jobs), key, seat, group.pause))
        with _service(made, folder) as reports:
            return _judged(made, jobs, reports)


def _groups(
    chosen: Collection[str], form: Form, loud_ones: Container[tuple[str, Form]]
) -> Iterator[_Group]:
    """Yield groups of variants that share a seat."""
    shared: dict[Attacker, list[str]] = defaultdict(list)
    loud: dict[Attacker, list[str]] = defaultdict(list)
    for key in chosen:
        each = VARIANTS[key]
        if form in _WATCHED and (each.ends_link or each.races or each.spoils):
            yield _Group(form, [key], _report_seconds())
        elif (key, form) in loud_ones:
            loud[each.attacker].append(key)
        elif each.ends_link:
            yield _Group(form, [key], 0.0)
        else:
            shared[each.attacker].append(key)
    for found, size, pause in ((loud, _SERIES, _report_seconds()), (shared, _SHARING, 0.0)):
        for keys in found.values():
            for begin in range(0, len(keys), size):
                yield _Group(form, keys[begin : begin + size], pause)


def _report_seconds() -> float:
    """Return the time for a report on this machine, in seconds."""
    share = os.getloadavg()[0] / (os.cpu_count() or 1)
    return REPORT_SECONDS * min(max(share, 1.0), _BUSY_TIMES)


def _name(seat: Seat) -> str:
    return f"{seat.form}-{seat.host_device}"


@contextlib.contextmanager
def _service(made: World, folder: Path) -> Iterator[list[_Report]]:
    """Fence the seats; yield the list of reports so far, which grows."""
    fenced = [seat for seat in made.seats if seat.form != "open"]
    if not fenced:
        yield []
        return
    output = folder / "events"
    keys = {
        "state_dir": str(folder / "state"),
        "output": str(output),
        "control": str(folder / "control.sock"),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    for seat in fenced:
        lines += table(seat, made.host_name)
    config = folder / "config.toml"
    config.write_text("\n".join(lines))
    reports: list[_Report] = []
    stop = threading.Event()
    with command.running("--config", str(config), inside=made.host):
        thread = threading.Thread(target=_follow, args=(output, reports, stop))
        thread.start()
        try:
            yield reports
        finally:
            stop.set()
            thread.join()


def table(seat: Seat, host: str) -> list[str]:
    """Return the ``[[sandbox]]`` table of a seat; ``host`` is the namespace of a VM's host."""
    keys = _sandbox(seat, host)
    return ["[[sandbox]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]


def _sandbox(seat: Seat, host: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": _name(seat), "install": True}
    if seat.form == "tap":
        return found | {
            "profile": "tap",
            "netns": host,
            "device": seat.host_device,
            "subnet": [f"{seat.gateway4}/24", f"{seat.gateway6}/64"],
            "gateway_port": PROXY_PORT,
        }
    found["netns"] = seat.namespace
    if seat.form == "sidecar":
        proxy = [f"127.0.0.1:{PROXY_PORT}"]
        return found | {"profile": "sidecar", "proxy_uid": [_PROXY_USER], "proxy": proxy}
    found["proxy"] = [f"{seat.gateway4}:{PROXY_PORT}", f"[{seat.gateway6}]:{PROXY_PORT}"]
    # By default, the service finds the host's end, and guards it.
    return found | ({"host_guard": "off"} if seat.form == "unguarded" else {})


def _follow(output: Path, reports: list[_Report], stop: threading.Event) -> None:
    """Read events as they are written, with the time of their arrival."""
    rest = b""
    with output.open("rb") as file:
        while True:
            is_last = stop.is_set()
            *lines, rest = (rest + file.read()).split(b"\n")
            reports += (_Report(time.time(), json.loads(line)) for line in lines)
            if is_last:
                return
            stop.wait(0.05)


def _judged(
    made: World, jobs: Sequence[Job], reports: list[_Report]
) -> dict[tuple[str, Form], Outcome]:
    magic = b"\x02" + secrets.token_bytes(1) + bytes([100, 64 + secrets.randbelow(64)])
    short = frozenset(job.number for job in jobs if VARIANTS[job.variant].is_short)
    arrivals = far.Arrivals(magic, short)
    with far.servers(made, (PROXY_PORT, WEB_PORT)), far.watch(made, arrivals):
        results = attacked(jobs, magic)
        far.wait_until_quiet(arrivals, _QUIET_SECONDS)
        _wait_for_reports(results, reports)
    return {
        (job.variant, job.seat.form): _outcome(job, results[job.number], arrivals, reports)
        for job in jobs
    }


def _wait_for_reports(results: dict[int, dict[str, Any]], reports: Sequence[_Report]) -> None:
    """Wait until no report about the attacks can come any more.

    On a busy machine a report may be written late. So its own time decides, and the end of the
    stream of events ends the wait.
    """
    end = max(each["ended"] for each in results.values()) + _report_seconds()
    latest = end + _LATE_SECONDS
    while (now := time.time()) < latest:
        last = reports[-1].arrived if reports else 0.0
        if now > end and now > last + _SILENT_SECONDS:
            return
        time.sleep(0.1)


def attacked(jobs: Sequence[Job], magic: bytes) -> dict[int, dict[str, Any]]:
    """Run the attacks by the runner; return its result of each."""
    groups: dict[Seat, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.seat, []).append(job)
    plan = {
        "magic": magic.hex(),
        "groups": [
            {
                "seat": {
                    key: value for key, value in asdict(seat).items() if key not in {"magic", "job"}
                },
                "pause": of_seat[0].pause,
                "jobs": [{"job": job.number, "variant": job.variant} for job in of_seat],
            }
            for seat, of_seat in sorted(
                groups.items(), key=lambda each: -len(each[1]) - 9 * each[1][0].pause
            )
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel.ways.runner"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    results = {each["job"]: each for each in map(json.loads, done.stdout.splitlines())}
    missing = [job.variant for job in jobs if job.number not in results]
    assert not missing, (missing, done.stderr)
    return results


def _outcome(
    job: Job, result: dict[str, Any], arrivals: far.Arrivals, reports: Sequence[_Report]
) -> Outcome:
    seat, number, error = job.seat, job.number, result["error"]
    if seat.form == "open":
        found = _arrived(number, arrivals, "link", "internet", "lan")
        return Outcome("works" if found else "fails", _shown(found), error)
    if seat.form == "tap":
        local = arrivals.frames.get((number, "local"), [])
        outside = arrivals.frames.get((number, "internet"), [])
        got_out = [each for each in local if not _is_to_gateway(each, seat)]
        got_out += (each for each in outside if not _is_translated(each))
        arrived = local + outside
    else:
        # A frame may reach the internet, or a bridge of the host, by another link than the seat's.
        arrived = _arrived(number, arrivals, "passed", "internet", "lan")
        got_out = [
            each
            for each in arrived
            if seat.form == "sidecar"
            or not far.is_to_proxy(each, seat, MAC, GATEWAY_MAC, PROXY_PORT)
        ]
    if not got_out:
        return Outcome("allowed" if arrived else "stopped", _shown(arrived), error)
    if job.pause:
        due = [each for each in reports if each.is_about(seat) and each.is_due()]
        late = [each.happened - result["ended"] for each in due if each.happened >= result["begun"]]
        if late and min(late) <= job.pause:
            code = due[0].event["metadata"]["event_code"]
            return Outcome("reported", f"{code}: {_shown(got_out)}", error)
        if late:
            error += f" reported after {min(late):.1f} s"
    return Outcome("OUT", _shown(got_out), error)


def _arrived(number: int, arrivals: far.Arrivals, *points: far.Point) -> list[bytes]:
    """Return the frames of an attack that arrived at these points."""
    return [frame for point in points for frame in arrivals.frames.get((number, point), [])]


def _shown(frames: Sequence[bytes]) -> str:
    return " ".join(sorted({each[:64].hex() for each in frames})[:2])


def _is_to_gateway(frame: bytes, seat: Seat) -> bool:
    """Return whether a packet on the host's way to its sockets is for the gateway's port."""
    return far.is_to_proxy(GATEWAY_MAC + MAC + frame[12:], seat, MAC, GATEWAY_MAC, PROXY_PORT)


def _is_translated(frame: bytes) -> bool:
    """Return whether a packet at the internet has the host's address, as NAT gives it."""
    if frame[12:14] == b"\x08\0":
        return frame[26:30] == socket.inet_aton(UPLINK4)
    return frame[12:14] == b"\x86\xdd" and frame[22:38] == socket.inet_pton(
        socket.AF_INET6, UPLINK6
    )
