"""Stage of the live benchmarks: a fenced sandbox, programs in it, and their monitoring."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import disk
from ocsf_nft import lab
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import installer, nft
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.state.state_db import FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

SANDBOX: Final = "bench"
GROUP: Final = 4001

_SENDER: Final = Path(__file__).with_name("sender.py")
_NFLOG_HOLDERS: Final = Path("/proc/thread-self/net/netfilter/nfnetlink_log")
_IPV6: Final = Path("/proc/sys/net/ipv6/conf")
_TICK: Final = os.sysconf("SC_CLK_TCK")


#: Sinks of a run: a file, and further ones.
_CONFIG: Final = """
state_dir = "{fenced.state}"

[[sandbox]]
name = "{sandbox}"
netns = "{fenced.lab.sandbox}"

[store]
path = "{fenced.store}"

[[sink]]
path = "{output}"

{sinks}
"""


class BenchError(OcsfNftError):
    """Failure to carry out a benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """A fenced lab, and a folder for its files."""

    lab: Lab
    folder: Path

    @property
    def namespace(self) -> Namespace:
        """Return the network namespace of the sandbox."""
        return self.lab.sandbox_namespace

    @property
    def state(self) -> Path:
        """Return the state directory with the record of the fence."""
        return self.folder / "state"

    @property
    def store(self) -> Path:
        """Return the path of the store of a run that :meth:`start` started."""
        return self.state / SANDBOX / FILE

    def start(self, output: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start ``ocsf-nft run`` on the fence, with a file as the sink."""
        return self._started(
            output, "--sandbox", SANDBOX, "--netns", self.lab.sandbox,
            "--state-dir", str(self.state), "--output", str(output), *options,
        )  # fmt: skip

    def start_with(self, output: Path, sinks: str) -> subprocess.Popen[bytes]:
        """Start it with a file and with more sinks, given as text of a configuration file."""
        config = self.folder / "config.toml"
        config.write_text(
            _CONFIG.format(fenced=self, sandbox=SANDBOX, output=output, sinks=sinks), "utf-8"
        )
        return self._started(output, "--config", str(config))

    def _started(self, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ocsf_nft", "run", *arguments]
        with messages(output).open("wb") as stderr:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)


@contextlib.contextmanager
def fenced(transport: LogTransport, *, ipv6: bool = True) -> Iterator[Fenced]:
    """Make a lab and fence its sandbox; remove both at the end.

    Without ``ipv6`` the kernel sends no packets of its own (router solicitations, multicast
    reports), so that every refused packet is from the benchmark. Raises an OcsfNftError if the
    system does not permit it.
    """
    with lab.throwaway() as made, disk.folder() as folder:
        if not ipv6:
            _without_ipv6(made)
        stage = Fenced(lab=made, folder=Path(folder))
        proxies = (f"{lab.GATEWAY4}:{lab.PROXY_PORT}", f"[{lab.GATEWAY6}]:{lab.PROXY_PORT}")
        spec = FenceSpec(sandbox=SANDBOX, proxies=tuple(map(endpoint, proxies)), group=GROUP)
        state = StateDirectory(stage.state)
        installer.install(spec, stage.namespace, state, transport)
        try:
            yield stage
        finally:
            installer.remove(SANDBOX, state)


@contextlib.contextmanager
def unfenced(text: str) -> Iterator[tuple[Namespace, Path]]:
    """Make a lab without IPv6 and load a ruleset in its sandbox; yield namespace and folder.

    Both are removed at the end. Raises an OcsfNftError if the system does not permit it.
    """
    with lab.throwaway() as made, disk.folder() as folder:
        _without_ipv6(made)
        nft.load(made.sandbox_namespace, text)
        yield made.sandbox_namespace, Path(folder)


def _without_ipv6(made: Lab) -> None:
    """Turn off IPv6 in a sandbox, so that the kernel sends no packets of its own there."""

    def leave() -> None:
        # The kernel reports twice that it leaves its groups, with this interval in milliseconds.
        interval = _IPV6 / made.sandbox_device / "mldv2_unsolicited_report_interval"
        interval.write_text("1", "ascii")
        (_IPV6 / "all" / "disable_ipv6").write_text("1", "ascii")

    made.sandbox_namespace.call(leave)
    time.sleep(0.05)


def counted(namespace: Namespace, name: str = "refused") -> int:
    """Return the packets in the named counters of a namespace whose names begin with ``name``."""
    listed = namespace.call(
        lambda: subprocess.run(
            [str(nft.find()), "-j", "list", "counters"], capture_output=True, check=True
        )
    )
    return sum(
        entry["counter"]["packets"]
        for entry in json.loads(listed.stdout)["nftables"]
        if "counter" in entry and entry["counter"]["name"].startswith(name)
    )


def send(namespace: Namespace, *arguments: object) -> subprocess.Popen[bytes]:
    """Start the sender inside a namespace; :func:`sent` waits for it."""
    return namespace.call(
        lambda: subprocess.Popen(
            [sys.executable, "-I", str(_SENDER), *map(str, arguments)], stdout=subprocess.PIPE
        )
    )


def sent(sender: subprocess.Popen[bytes]) -> list[int]:
    """Return the sender's numbers; raise BenchError if it takes 60 s or fails."""
    try:
        output, _ = sender.communicate(timeout=60)
    except subprocess.TimeoutExpired as error:
        sender.kill()
        sender.wait()
        raise BenchError("the sender did not end in time") from error
    if sender.returncode != 0:
        raise BenchError("the sender failed")
    found = json.loads(output)
    return found if isinstance(found, list) else [found]


@contextlib.contextmanager
def ending(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stop a child at the end: SIGTERM, and SIGKILL if it takes more than 20 s."""
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Run children started in the context on one core: the ``number``-th of the available ones.

    With fewer cores they share the last one.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[min(number, len(allowed) - 1)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def cpu_seconds(child: subprocess.Popen[bytes]) -> float:
    """Return the CPU seconds that a running child has used (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{child.pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def peak_bytes(pid: int) -> int:
    """Return the maximum memory of a running process so far, in bytes."""
    return _memory(pid, "VmHWM")


def resident_bytes(child: subprocess.Popen[bytes]) -> int:
    """Return the current memory of a running child, in bytes."""
    return _memory(child.pid, "VmRSS")


def _memory(pid: int, field: str) -> int:
    """Return a line of proc_pid_status(5) in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise BenchError(f"process {pid} has ended")


def group_is_held(namespace: Namespace) -> bool:
    """Return whether a process reads the fence's NFLOG group."""
    lines = namespace.call(lambda: _NFLOG_HOLDERS.read_text("ascii")).splitlines()
    return any(int(line.split()[0]) == GROUP for line in lines if line.strip())


def wait_for(
    what: str,
    condition: Callable[[], bool],
    child: subprocess.Popen[bytes],
    *,
    seconds: float = 10.0,
) -> None:
    """Poll until a condition of a child holds.

    Raises BenchError if that takes longer than ``seconds``, or if the child ends.
    """
    end = time.monotonic() + seconds
    while not condition():
        if child.poll() is not None:
            command = " ".join(child.args) if isinstance(child.args, list) else child.args
            raise BenchError(f"`{command!s}` ended by itself with status {child.returncode}")
        if time.monotonic() > end:
            raise BenchError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.01)


def wait_until_ready(service: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until a run that writes to a file is ready; raise BenchError if it fails."""
    wait_for("`ocsf-nft run`", lambda: b"ready" in messages(output).read_bytes(), service)


def messages(output: Path) -> Path:
    """Return the path of the messages of a run that writes to a file."""
    return output.with_suffix(".stderr")


def wait_until_idle(child: subprocess.Popen[bytes], *, seconds: float = 15.0) -> None:
    """Wait until a child has used no CPU for 0.3 s; raise BenchError after ``seconds``."""
    last, since = cpu_seconds(child), time.monotonic()

    def idle() -> bool:
        nonlocal last, since
        now = cpu_seconds(child)
        if now - last > 1 / _TICK:  # one tick may be caused by the poll
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.3

    wait_for("the reader's rest", idle, child, seconds=seconds)


def run_quietly(*arguments: str) -> None:
    """Run a program without its output; raise CalledProcessError if it fails."""
    subprocess.run(arguments, check=True, capture_output=True)


def kill(pid: int) -> None:
    """Kill a process."""
    os.kill(pid, signal.SIGKILL)
