"""A flood in the sandbox: what is read, lost and written, beside ulogd2 in the same run."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Self

import orjson

from bench import stage, ulogd
from bench.subject import Subject
from ocsf_nft import lab

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

#: The reader stays busy for longer: the socket's buffer holds some 250,000 records more.
_SECONDS: Final = 1.5
_PORT: Final = 443
_READER_CORE, _SENDER_CORE = 0, 1
_NETWORK_ACTIVITY: Final = 4001
_LIFECYCLE: Final = 6002
_OTHER: Final = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """``told`` are the losses that the program itself reports, None when it reports no number."""

    program: str
    sent: int
    written: int
    told: int | None
    seconds: float
    cpu_s: float

    @property
    def lost(self) -> int:
        return self.sent - self.written

    def row(self) -> tuple[str, ...]:
        return (
            self.program,
            f"{self.sent:,}",
            f"{self.written:,}",
            f"{self.lost:,}",
            "-" if self.told is None else f"{self.told:,}",
            f"{self.written / self.seconds:,.0f}",
            f"{self.cpu_s / max(self.written, 1) * 100_000:.2f}",
        )


def run() -> Subject:
    """Measure both, one after the other; raises an OcsfNftError when the system doesn't let us."""
    ours = _ours()
    measured = [ours]
    notes = [
        "Each reader has one core, the sender another. It is saturated until its buffer is empty.",
        "written: packets that its file tells of; told: losses that it tells of itself.",
    ]
    peer = ulogd.binary()
    if peer is None:
        notes.append("ulogd2 is not installed (packages ulogd2, ulogd2-json): not measured.")
    else:
        measured.append(_ulogd(peer))
        notes.append("ulogd2: 16 MB buffer, threshold 64; one flat object a packet, no schema.")
    failures = [] if ours.lost == ours.told else [f"{ours.lost} lost, but {ours.told} told of"]
    return Subject(
        title=f"NFLOG, a flood of UDP for {_SECONDS} s, to a file of JSON lines",
        columns=("program", "refused", "written", "lost", "told", "written/s", "CPU s per 100k"),
        rows=tuple(each.row() for each in measured),
        notes=tuple(notes),
        failures=tuple(failures),
    )


def _ours() -> _Measured:
    with stage.fenced("nflog", ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        flood = _flood(fenced, output, lambda: fenced.start(output))
        written, told = _account(output)
    return flood.measured(f"ocsf-nft {version('ocsf-nft')} run, OCSF", written, told)


def _ulogd(peer: str) -> _Measured:
    with stage.fenced("nflog", ipv6=False) as fenced:
        output = fenced.folder / "ulogd.json"
        flood = _flood(
            fenced, output, lambda: ulogd.start(peer, fenced.namespace, fenced.folder, output)
        )
        with output.open("rb") as file:
            written = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return flood.measured(f"{ulogd.version(peer)}, JSON", written, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flood:
    sent: int
    seconds: float
    cpu_s: float

    def measured(self, program: str, written: int, told: int | None) -> _Measured:
        return _Measured(
            program=program,
            sent=self.sent,
            written=written,
            told=told,
            seconds=self.seconds,
            cpu_s=self.cpu_s,
        )


def _flood(
    fenced: stage.Fenced, output: Path, start: Callable[[], subprocess.Popen[bytes]]
) -> _Flood:
    """Start a reader, flood it, and stop it when it has written what it could."""
    with stage.on_core(_READER_CORE):
        reader = start()
    with stage.ending(reader):
        stage.wait_for("reading", lambda: stage.group_is_held(fenced.namespace), reader)
        stage.wait_until_idle(reader)
        before, cpu = fenced.refused(), stage.cpu_seconds(reader)
        with _Growth(output) as growth:
            with stage.on_core(_SENDER_CORE):
                sender = stage.send(fenced.namespace, "flood", lab.INTERNET4, _PORT, _SECONDS)
            stage.sent(sender)
            stage.wait_until_idle(reader, seconds=30)
        cpu = stage.cpu_seconds(reader) - cpu
        # Only a later record's number tells how many were lost at the end.
        stage.sent(stage.send(fenced.namespace, "paced", lab.INTERNET4, _PORT, 1, 1))
        stage.wait_until_idle(reader)
    return _Flood(sent=fenced.refused() - before, seconds=growth.seconds, cpu_s=cpu)


@dataclass(slots=True)
class _Growth:
    """Watches a file grow: from the first time that it did to the last."""

    path: Path
    seconds: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="growth")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        size, first = self._size(), None
        while not self._ended.wait(0.005):
            now = self._size()
            if now != size:
                size, last = now, time.monotonic()
                first = first or last
                self.seconds = last - first

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def _account(output: Path) -> tuple[int, int]:
    """Packets that our events tell of, and packets that they tell to be lost."""
    written = told = 0
    with output.open("rb") as file:
        for line in file:
            event = orjson.loads(line)
            if event["class_uid"] == _NETWORK_ACTIVITY:
                written += event["count"]
            elif event["class_uid"] == _LIFECYCLE and event["activity_id"] == _OTHER:
                told += event.get("count", 0)
    return written, told
