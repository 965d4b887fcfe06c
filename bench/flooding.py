"""A flood in the sandbox: the cost of each way to log it, and the packets that are reported."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import orjson

from bench import host, kernel_log, stage, ulogd, usual
from bench.subject import Subject
from ocsf_nft import lab

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from ocsf_nft.netns import Namespace

_SECONDS: Final = 5
#: Targets of the two processes if each packet is another flow.
_APART: Final = ("203.0.113.7", "203.0.113.107")
_PORT: Final = 443
_BOUND_PERCENT: Final = 3.0
_NETWORK_ACTIVITY: Final = 4001

#: The names of the works in the sender.
_Work: TypeAlias = Literal["flood", "scatter"]
_WORDS: Final = {"flood": "one flow", "scatter": "many flows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flood:
    """Refused packets and their time, and the CPU time of the senders and the reader."""

    refused: int
    seconds: float
    senders_s: float
    reader_s: float = 0.0
    reader_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """``reported`` packets in ``written`` events, lines or records; ``reads``: by a process."""

    work: _Work
    program: str
    flood: _Flood
    written: int
    reported: int
    reads: bool = True

    @property
    def percent(self) -> float:
        return 100 * self.flood.reader_s / self.flood.seconds

    def row(self) -> tuple[str, ...]:
        flood = self.flood
        return (
            _WORDS[self.work],
            self.program,
            f"{flood.refused:,}",
            f"{flood.refused / flood.seconds:,.0f}",
            f"{flood.senders_s / flood.refused * 1e6:.2f}",
            f"{self.written:,}",
            f"{flood.refused - self.reported:,}",
            f"{self.percent:.1f}" if self.reads else "-",
            f"{flood.reader_bytes / 1e6:.0f}" if self.reads else "-",
        )

    def failures(self) -> tuple[str, ...]:
        failed = []
        if self.reported != self.flood.refused:
            failed.append(
                f"{self.program}: {self.reported:,} of {self.flood.refused:,} refused reported"
            )
        if self.work == "flood" and self.percent >= _BOUND_PERCENT:
            failed.append(f"{self.program}: {self.percent:.1f}% of a core for one flow")
        return tuple(failed)


def run() -> Subject:
    """Measure each in turn; raise an OcsfNftError if the system does not permit it."""
    ours = [_ours("flood"), _ours("scatter"), _ours("scatter", "--attribution", "user")]
    notes = [
        "many flows: one packet per flow.",
        "µs: CPU time of the senders for each packet, the kernel's part of refusing it included.",
        "unreported: refused packets that are in no output afterwards; of all records, the",
        "kernel log, a ring, holds only the newest.",
        "CPU %: of one core, user and system time of the reader, while the flood lasts.",
        "CPU and MB of ocsf-nft: both processes; memory that they share counts in each.",
    ]
    measured = [ours[0]]
    peer = ulogd.binary()
    if peer is None:
        notes.append("ulogd2 is not installed (packages ulogd2, ulogd2-json): not measured.")
    else:
        notes.append("ulogd2: 16 MB buffer, threshold 64; one flat object a packet, no schema.")
        measured.append(_ulogd(peer, "flood"))
    measured += [
        _kernel_log("log prefix, kernel log", usual.TO_KERNEL_LOG),
        _kernel_log("the same, limit 5/second", usual.AT_MOST_5),
        *ours[1:],
    ]
    if peer is not None:
        measured.append(_ulogd(peer, "scatter"))
    return Subject(
        title=f"A flood of UDP by 2 processes for {_SECONDS} s, nothing pinned to a core",
        columns=("flood", "log, and its reader", "refused", "per s", "µs", "written", "unreported",
                 "CPU %", "MB"),
        rows=tuple(each.row() for each in measured),
        notes=tuple(notes),
        failures=tuple(failure for each in ours for failure in each.failures()),
    )  # fmt: skip


def _ours(work: _Work, *options: str) -> _Measured:
    with stage.fenced("nflog", ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        with stage.ending(fenced.start(output, *options)) as service:
            stage.wait_until_ready(service, output)
            flood = _flood(fenced.namespace, work, service)
        events, reported = _reported(output)
    return _Measured(
        work=work,
        program=" ".join(("ocsf-nft", version("ocsf-nft"), "run", *options)),
        flood=flood,
        written=events,
        reported=reported,
    )


def _reported(output: Path) -> tuple[int, int]:
    """Return the number of events of refused packets, and the sum of their counts."""
    with output.open("rb") as file:
        counts = [
            event["count"]
            for event in map(orjson.loads, file)
            if event["class_uid"] == _NETWORK_ACTIVITY
        ]
    return len(counts), sum(counts)


def _ulogd(peer: str, work: _Work) -> _Measured:
    with stage.unfenced(usual.ruleset(usual.TO_NFLOG)) as (namespace, folder):
        output = folder / "ulogd.json"
        with stage.ending(ulogd.start(peer, namespace, folder, output)) as reader:
            stage.wait_for("reading", lambda: stage.group_is_held(namespace), reader)
            flood = _flood(namespace, work, reader)
        with output.open("rb") as file:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return _Measured(
        work=work, program=ulogd.version(peer), flood=flood, written=lines, reported=lines
    )


def _kernel_log(program: str, log: str) -> _Measured:
    with kernel_log.of_all_namespaces(), stage.unfenced(usual.ruleset(log)) as (namespace, _):
        before = kernel_log.read(usual.PREFIX)
        flood = _flood(namespace, "flood")
        after = kernel_log.read(usual.PREFIX, behind=before.newest)
    return _Measured(
        work="flood",
        program=program,
        flood=flood,
        written=after.newest - before.newest,
        reported=after.held,
        reads=False,
    )


def _flood(
    namespace: Namespace, work: _Work, reader: subprocess.Popen[bytes] | None = None
) -> _Flood:
    """Flood, and wait until the reader is idle."""
    if reader is not None:
        stage.wait_until_idle(reader)
    targets = _APART if work == "scatter" else (lab.INTERNET4, lab.INTERNET4)
    refused, senders_s = stage.counted(namespace), _children_s()
    reader_s = 0.0 if reader is None else host.use(reader).cpu_s
    began = time.monotonic()
    senders = [stage.send(namespace, work, target, _PORT, _SECONDS) for target in targets]
    for sender in senders:
        stage.sent(sender)
    seconds, senders_s = time.monotonic() - began, _children_s() - senders_s
    refused = stage.counted(namespace) - refused
    if reader is None:
        return _Flood(refused=refused, seconds=seconds, senders_s=senders_s)
    reader_s = host.use(reader).cpu_s - reader_s
    stage.wait_until_idle(reader, seconds=30)
    return _Flood(
        refused=refused,
        seconds=seconds,
        senders_s=senders_s,
        reader_s=reader_s,
        reader_bytes=sum(map(stage.peak_bytes, host.processes(reader))),
    )


def _children_s() -> float:
    """Return the CPU time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
