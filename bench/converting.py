"""Kernel log files to events, beside programs that only take six fields from the same lines.

Run only this subject with ``python -m bench.converting [LINES]``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import command, dmesg, stage
from bench.subject import Subject
from ocsf_nft.conversion.native_library import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LINES: Final = 500_000
#: Lines for the comparison with the general code, which takes its time.
_COMPARED: Final = 30_000
_ROUNDS: Final = 3
_SANDBOXES: Final = 64
#: A file system in memory: a disk would be the limit.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - for a temporary directory
#: Bytes of an event, about.
_EVENT_BYTES: Final = 3_500
_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.01
_TIMES: Final = re.compile(rb'"(?:logged|processed)_time":[0-9]+')
#: Lower limits: rate in relation to mawk; of two jobs to one; of 64 sandboxes to one sandbox.
_OF_MAWK: Final = 1.0
_OF_ONE_JOB: Final = 1.7
_OF_ONE_SANDBOX: Final = 0.9

_AWK: Final = r"""
/ocsf-nft:/ {
    s = d = p = a = b = u = ""
    for (i = 1; i <= NF; i++) {
        k = substr($i, 1, 4)
        if (k == "SRC=") s = substr($i, 5)
        else if (k == "DST=") d = substr($i, 5)
        else if (k == "SPT=") a = substr($i, 5)
        else if (k == "DPT=") b = substr($i, 5)
        else if (k == "UID=") u = substr($i, 5)
        else if (substr($i, 1, 6) == "PROTO=") p = substr($i, 7)
    }
    print s, d, p, a, b, u
}
"""
_FIELDS: Final = ("SRC", "DST", "PROTO", "SPT", "DPT", "UID")
_POLARS: Final = """
import sys
import polars
line = polars.col("line").str
polars.scan_csv(
    sys.argv[1], has_header=False, separator="\\x01", quote_char=None, new_columns=["line"]
).select(
    line.extract(rf" {name}=([^ ]*)").alias(name) for name in sys.argv[3:]
).sink_ndjson(sys.argv[2])
"""
_RSYSLOG: Final = """
global(workDirectory="{folder}" maxMessageSize="64k")
module(load="imfile" mode="inotify")
template(name="fields" type="string" string="{fields}\\n")
input(type="imfile" file="{source}" tag="kernel:" ruleset="on" addMetadata="off")
ruleset(name="on") {{
    action(type="omfile" file="{target}" template="fields" ioBufferSize="256k")
}}
"""
_SYSLOG_NG: Final = """
@version: 4.8
options {{ log-msg-size(65536); stats(freq(0)); }};
source lines {{
    file("{source}" flags(no-parse) read-old-records(yes) log-iw-size(100000)
    log-fetch-limit(1000));
}};
destination fields {{ file("{target}" template("$(format-json {fields})\\n")); }};
log {{ source(lines); parser {{ kv-parser(); }}; destination(fields); }};
"""


class _Run(NamedTuple):
    """One run of a program."""

    wall_s: float
    cpu_s: float
    written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """Program that converts all lines of a file. A daemon does not end by itself."""

    name: str
    #: Arguments, from the paths of the input and of the output.
    arguments: Callable[[Path, Path], Sequence[str]]
    source: Path
    lines: int
    cores: frozenset[int]
    is_daemon: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    runs: list[_Run] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the lines per second of the fastest run."""
        return self.lines / min(run.wall_s for run in self.runs)

    @property
    def cpu_us(self) -> float:
        """Return the CPU time of a line in the cheapest run, in microseconds."""
        return min(run.cpu_s for run in self.runs) / self.lines * 1e6

    def run(self, folder: Path) -> None:
        """Run the program once; raise BenchError if it fails."""
        target = folder / "output"
        target.unlink(missing_ok=True)
        arguments = self.arguments(self.source, target)
        began = time.perf_counter()
        child = subprocess.Popen(
            arguments,
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),  # noqa: PLW1509 - no threads
        )
        if self.is_daemon:
            _wait_for_lines(child, target, self.lines)
        wall = time.perf_counter() - began
        if self.is_daemon:
            child.send_signal(signal.SIGTERM)
        _, status, used = os.wait4(child.pid, 0)
        if not self.is_daemon:
            wall = time.perf_counter() - began
        code = child.returncode = os.waitstatus_to_exitcode(status)
        if code != 0 and not self.is_daemon:
            raise stage.BenchError(f"{self.name} failed with code {code}")
        self.runs.append(_Run(wall, used.ru_utime + used.ru_stime, target.stat().st_size))
        target.unlink()


class _Relation(NamedTuple):
    """Rate in relation to another one, and its lower limit."""

    what: str
    other: str
    ratio: float
    limit: float

    def __str__(self) -> str:
        return f"{self.what} in relation to {self.other}: {self.ratio:.2f} (at least {self.limit})"


def _wait_for_lines(child: subprocess.Popen[bytes], target: Path, lines: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    found = position = 0
    while found < lines:
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise stage.BenchError(f"{child.args!r} has written {found:,} of {lines:,} lines")
        time.sleep(_POLL_S)
        if not target.exists():
            continue
        with target.open("rb") as file:
            file.seek(position)
            while chunk := file.read(1 << 20):
                found += chunk.count(b"\n")
                position += len(chunk)


def _shell(script: str, *arguments: str) -> Callable[[Path, Path], Sequence[str]]:
    """Return the arguments of a script that reads ``$1`` and writes ``$2``."""
    return lambda source, target: ("sh", "-c", script, "sh", str(source), str(target), *arguments)


def _convert(jobs: int) -> Callable[[Path, Path], Sequence[str]]:
    return _shell(
        'exec "$3" -m ocsf_nft convert --boot "$4" --jobs "$5" "$1" > "$2"',
        sys.executable,
        dmesg.BOOT,
        str(jobs),
    )


def _rsyslog(binary: str, folder: Path) -> Callable[[Path, Path], Sequence[str]]:
    def arguments(source: Path, target: Path) -> Sequence[str]:
        fields = " ".join(f"%msg:R,ERE,1,BLANK: {each}=([^ ]*)--end%" for each in _FIELDS)
        for state in folder.glob("imfile-state:*"):
            state.unlink()
        config = folder / "rsyslog.conf"
        config.write_text(
            _RSYSLOG.format(folder=folder, fields=fields, source=source, target=target)
        )
        return binary, "-n", "-f", str(config), "-i", str(folder / "rsyslog.pid")

    return arguments


def _syslog_ng(binary: str, folder: Path) -> Callable[[Path, Path], Sequence[str]]:
    def arguments(source: Path, target: Path) -> Sequence[str]:
        fields = " ".join(f"{each}=${{{each}}}" for each in _FIELDS)
        config = folder / "syslog-ng.conf"
        config.write_text(_SYSLOG_NG.format(fields=fields, source=source, target=target))
        (folder / "persist").unlink(missing_ok=True)
        return (
            binary, "-F", "--no-caps", "-f", str(config), "--persist-file", str(folder / "persist"),
            "--pidfile", str(folder / "syslog-ng.pid"), "--control", str(folder / "control"),
        )  # fmt: skip

    return arguments


def run(lines: int = _LINES) -> Subject:
    """Measure all programs in turns; raise BenchError if one fails."""
    with _folder(lines) as folder:
        many, one, few = (folder / name for name in ("many", "one", "few"))
        many.write_bytes(_text(lines, _SANDBOXES))
        one.write_bytes(_text(lines, 1))
        few.write_bytes(_text(min(lines, _COMPARED), _SANDBOXES))
        cores = sorted(os.sched_getaffinity(0))
        core = frozenset(cores[-1:])
        convert, of_one_sandbox, two_jobs, general, *others = (
            _Program(
                name="ocsf-nft convert", arguments=_convert(1), source=many, lines=lines, cores=core
            ),
            _Program(
                name="ocsf-nft convert, lines of one sandbox",
                arguments=_convert(1), source=one, lines=lines, cores=core,
            ),
            _Program(
                name="ocsf-nft convert --jobs 2, two cores",
                arguments=_convert(2), source=many, lines=lines, cores=frozenset(cores[-2:]),
            ),
            _Program(
                name="ocsf-nft convert without its library in C",
                arguments=_convert(1), source=few, lines=min(lines, _COMPARED), cores=core,
                environment={VARIABLE: "1"},
            ),
            *_peers(folder, many, lines, core),
        )  # fmt: skip
        programs = (convert, of_one_sandbox, two_jobs, general, *others)
        for _ in range(_ROUNDS):
            for program in programs:
                program.run(folder)
        is_equal = _has_equal_results(folder, few)
    mawk = next((each for each in others if each.name.startswith("mawk")), None)
    missing = [
        f"{name} is not installed: not measured."
        for name in ("mawk", "gawk", "rsyslog", "syslog-ng", "polars")
        if not any(each.name.startswith(name) for each in others)
    ]
    relations = [
        _Relation("64 sandboxes", "one", convert.rate / of_one_sandbox.rate, _OF_ONE_SANDBOX)
    ]
    if len(cores) > 1:
        relations.append(_Relation("two jobs", "one", two_jobs.rate / convert.rate, _OF_ONE_JOB))
    if mawk is not None:
        relations.append(_Relation("convert", "mawk", convert.rate / mawk.rate, _OF_MAWK))
    return Subject(
        title=f"Kernel log files of {_SANDBOXES} sandboxes, in memory; fastest of {_ROUNDS} runs",
        columns=("what", "lines", "lines/s", "CPU µs a line", "MB written", "of mawk"),
        rows=tuple(
            (
                each.name,
                f"{each.lines:,}",
                f"{each.rate:,.0f}",
                f"{each.cpu_us:.2f}",
                f"{each.runs[0].written / 1e6:,.0f}",
                "" if mawk is None else f"{each.rate / mawk.rate:.2f}",
            )
            for each in programs
        ),
        notes=(
            *map(str, relations),
            "The others take six fields by their names, check nothing, and write no events.",
            *missing,
        ),
        failures=(
            *(f"{each}" for each in relations if each.ratio < each.limit),
            *(() if is_equal else ("the events differ with and without the library or jobs",)),
        ),
    )


def _peers(folder: Path, source: Path, lines: int, core: frozenset[int]) -> Iterator[_Program]:
    for awk in ("mawk", "gawk"):
        if shutil.which(awk) is not None:
            yield _Program(
                name=f"{awk}, six fields, flat",
                arguments=_shell(f'exec {awk} "$3" "$1" > "$2"', _AWK),
                source=source, lines=lines, cores=core,
            )  # fmt: skip
    daemons = {
        "rsyslog, six fields by regular expressions, flat": ("rsyslogd", _rsyslog),
        "syslog-ng, six fields by its kv-parser, JSON": ("syslog-ng", _syslog_ng),
    }
    for name, (program, arguments) in daemons.items():
        binary = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if binary is not None:
            yield _Program(
                name=name, arguments=arguments(binary, folder), source=source, lines=lines,
                cores=core, is_daemon=True,
            )  # fmt: skip
    if find_spec("polars") is not None:
        yield _Program(
            name="polars, six fields by regular expressions, JSON",
            arguments=lambda source, target: (
                sys.executable, "-c", _POLARS, str(source), str(target), *_FIELDS
            ),
            source=source, lines=lines, cores=core,
        )  # fmt: skip


def _text(lines: int, sandboxes: int) -> bytes:
    """Return usual lines, with the sandboxes in turns."""
    ours = f"ocsf-nft:{stage.SANDBOX}:".encode()

    def of_sandbox(line: bytes, number: int) -> bytes:
        if sandboxes == 1:
            return line
        line = line.replace(ours, b"ocsf-nft:agent-%02d:" % number)
        return line.replace(b" OUT=h2s0 ", b" OUT=veth%02d " % number)

    every = dmesg.usual(lines).splitlines(keepends=True)
    # 7 has no divisor in common with the number of forms: each sandbox sends all of them.
    return b"".join(of_sandbox(line, at // 7 % sandboxes) for at, line in enumerate(every))


def _has_equal_results(folder: Path, source: Path) -> bool:
    """Return True if the events are equal with and without the library, and with more jobs."""
    digests = set()
    for jobs, environment in ((1, {}), (2, {}), (1, {VARIABLE: "1"})):
        target = folder / "compared"
        subprocess.run(
            _convert(jobs)(source, target),
            env=os.environ | environment,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        digests.add(sha256(_TIMES.sub(b"", target.read_bytes())).digest())
    return len(digests) == 1


@contextlib.contextmanager
def _folder(lines: int) -> Iterator[Path]:
    """Create a folder in memory; raise BenchError if there is too little."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < 2 * lines * _EVENT_BYTES:
        raise stage.BenchError(f"{_MEMORY} has too little memory for {lines:,} events")
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        yield Path(folder)


if __name__ == "__main__":
    command.run([lambda: run(int(sys.argv[1]) if len(sys.argv) > 1 else _LINES)])
