"""Soak: a service with 6 and with 50 sandboxes through bursts, faults and quiet phases.

``python -m bench.soak [MINUTES]``, as ``make soak`` runs it; both services run at the same time. At
the end every refused packet must be in an event, and each service must use no more than at the
begin. The kernel keeps the flows of a burst for ten minutes, so the last burst is earlier.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import command, host, stage
from bench.soak_receiver import Receiver
from bench.soak_watch import Watch
from bench.subject import Subject
from ocsf_nft.netns import named

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.host import Use

_NUMBERS: Final = (6, 50)
_MINUTES: Final = 30.0
#: Seconds in which the service must show a fault, and that the fault is over.
_SHOWN_S: Final = 30.0
_SETTLE_S: Final = 30.0
_CALM_S: Final = 60.0
_BURST_FLOWS: Final = 20_000
#: Time for which the kernel keeps a flow, and some more.
_FLOW_S: Final = 630.0
_PORTS: Final = range(20_000, 60_000)
#: What the service may use more at the end than at the begin.
_MORE_BYTES: Final = 10_000_000
_MORE_CPU_PERCENT: Final = 1.0
_STORE_BYTES: Final = 64 << 20
_NETWORK_ACTIVITY: Final = 4001
_CONFIG: Final = """
state_dir = {state}
listen = "127.0.0.1:{listen}"
[attribution]
method = "capture"
[store]
max_bytes = {store_bytes}
[[sink]]
path = {output}
[[sink]]
type = "http"
name = "receiver"
url = "http://127.0.0.1:{receiver}/"
timeout_seconds = 5
retry_seconds = 5
batch_events = {batch}
"""
_SANDBOX: Final = """
[[sandbox]]
name = "{name}"
netns = "{name}"
self_heal = {heals}
"""


@dataclass(slots=True, kw_only=True)
class _Soak:
    """A service in the soak: its sandboxes, what was refused there, and what went wrong."""

    names: list[str]
    folder: Path
    sockets: dict[str, socket.socket]
    receiver: Receiver
    watch: Watch
    dice: random.Random
    service: subprocess.Popen[bytes] | None = None
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    batch: int = 500
    rounds: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def output(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def unhealed(self) -> str:
        """Return the sandbox whose fence the service reports and does not restore."""
        return self.names[-1]

    def configure(self) -> None:
        """Write the configuration file."""
        text = _CONFIG.format(
            state=json.dumps(str(self.state)), output=json.dumps(str(self.output)),
            listen=self.watch.port, receiver=self.receiver.port, batch=self.batch,
            store_bytes=_STORE_BYTES,
        )  # fmt: skip
        text += "".join(
            _SANDBOX.format(name=name, heals=json.dumps(name != self.unhealed))
            for name in self.names
        )
        (self.folder / "config.toml").write_text(text, "utf-8")

    def start(self) -> None:
        """Start the service, and wait until it is ready."""
        config = self.folder / "config.toml"
        arguments = [sys.executable, "-m", "ocsf_nft", "run", "--config", str(config)]
        with (self.folder / "messages").open("ab") as stderr:
            self.service = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=stderr)
        self.shown("ready after a start", lambda: self.watch.is_ready, seconds=120.0)

    def running(self) -> subprocess.Popen[bytes]:
        """Return the process of the service, which must run."""
        if self.service is None or self.service.poll() is not None:
            raise stage.BenchError(
                "the service has ended: " + (self.folder / "messages").read_text("utf-8")[-2_000:]
            )
        return self.service

    def attempt(self, name: str, address: str, port: int) -> None:
        """Send a packet, and count it if the fence refuses it."""
        try:
            self.sockets[name].sendto(b"attempt", (address, port))
        except PermissionError:
            self.refused[name] += 1
        except OSError:  # no route at the moment
            return
        else:
            self.failures.append(f"a packet left {name}")

    def shown(self, what: str, is_shown: Callable[[], bool], seconds: float = _SHOWN_S) -> None:
        """Wait until something is shown; record a failure if it is not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.running()
            if is_shown():
                return
            time.sleep(0.5)
        self.failures.append(f"not within {seconds:.0f} s: {what}")

    def has_event(self, since: int, caption: str, name: str | None = None) -> bool:
        """Return True if the file has an event with a caption, of a sandbox, beyond a size."""
        with self.output.open("rb") as file:
            file.seek(since)
            return any(
                caption.encode() in line and (name is None or f'"{name}"'.encode() in line)
                for line in file
            )

    def size(self) -> int:
        """Return the size of the file with the events."""
        return self.output.stat().st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    sandboxes: int
    begin: Use
    begin_percent: float
    end: Use
    end_percent: float
    state_bytes: int
    refused: int
    reported: int
    events: int
    rounds: int
    failures: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        return (
            f"{self.sandboxes}",
            f"{self.rounds}",
            f"{self.refused:,}",
            f"{self.reported:,}",
            f"{self.events:,}",
            f"{self.begin.bytes / 1e6:.1f} / {self.end.bytes / 1e6:.1f}",
            f"{self.begin_percent:.2f} / {self.end_percent:.2f}",
            f"{self.begin.descriptors} / {self.end.descriptors}",
            f"{self.begin.threads} / {self.end.threads}",
            f"{self.state_bytes / 1e6:.1f}",
        )


def run(minutes: float = _MINUTES) -> Subject:
    """Soak one number of sandboxes after the other."""
    with ThreadPoolExecutor(len(_NUMBERS)) as pool:
        measured = list(pool.map(lambda number: _measure(number, 60 * minutes), _NUMBERS))
    return Subject(
        title=f"Soak of {minutes:.0f} minutes: at the begin / at the end",
        columns=("sandboxes", "rounds", "refused", "reported", "events", "Pss, MB", "idle, CPU %",
                 "descriptors", "threads", "state, MB"),
        rows=tuple(each.row() for each in measured),
        notes=(
            "Both processes of the service, which was killed and started again in between.",
            "A round has each burst and each fault once, in a random order.",
        ),
        failures=tuple(failure for each in measured for failure in each.failures),
    )  # fmt: skip


def _measure(number: int, seconds: float) -> _Measured:
    ending = time.monotonic() + seconds - 2 * _CALM_S - _SETTLE_S
    with _soaking(number) as soak:
        try:
            soak.start()
            time.sleep(_SETTLE_S)
            begin, begin_percent = _idle(soak)
            while time.monotonic() < ending:
                _round(soak, ending)
            time.sleep(_CALM_S)
            end, end_percent = _idle(soak)
            soak.failures += soak.watch.mismatches
            _stop(soak)
        finally:
            if soak.service is not None and soak.service.poll() is None:
                soak.service.kill()
                soak.service.wait()
        reported, events, doubled = _reported(soak)
        for name in soak.names:
            if soak.refused[name] != reported[name]:
                soak.failures.append(
                    f"{name}: {soak.refused[name]} packets refused, {reported[name]} reported"
                )
        if events != soak.receiver.uids:
            soak.failures.append(
                f"{len(events - soak.receiver.uids)} events are in the file alone, "
                f"{len(soak.receiver.uids - events)} at the receiver alone"
            )
        state_bytes = sum(each.stat().st_size for each in soak.state.rglob("*") if each.is_file())
        _compare(soak, begin, end, begin_percent, end_percent)
        if doubled:
            print(f"{doubled} events are twice in the file, after kills", file=sys.stderr)
        return _Measured(
            sandboxes=number, begin=begin, begin_percent=begin_percent, end=end,
            end_percent=end_percent, state_bytes=state_bytes, refused=soak.refused.total(),
            reported=reported.total(), events=len(events), rounds=soak.rounds,
            failures=tuple(f"{number} sandboxes: {each}" for each in soak.failures),
        )  # fmt: skip


def _compare(soak: _Soak, begin: Use, end: Use, begin_percent: float, end_percent: float) -> None:
    if end.bytes > begin.bytes + _MORE_BYTES:
        soak.failures.append(f"memory: {begin.bytes:,} bytes, then {end.bytes:,}")
    if end_percent > begin_percent + _MORE_CPU_PERCENT:
        soak.failures.append(f"CPU: {begin_percent:.2f}%, then {end_percent:.2f}%")
    # The HTTP sink keeps a connection from its first batch on.
    if end.descriptors > begin.descriptors + 1 or end.threads > begin.threads:
        soak.failures.append(
            f"descriptors and threads: {begin.descriptors} and {begin.threads}, "
            f"then {end.descriptors} and {end.threads}"
        )


@contextlib.contextmanager
def _soaking(number: int) -> Iterator[_Soak]:
    with (
        host.sandboxes(number) as (names, folder),
        host.sockets(names) as sockets,
        Receiver() as receiver,
        Watch(names) as watch,
    ):
        soak = _Soak(
            names=names, folder=folder, sockets=sockets, receiver=receiver, watch=watch,
            dice=random.Random(number),
        )  # fmt: skip
        soak.configure()
        yield soak


def _idle(soak: _Soak) -> tuple[Use, float]:
    service = soak.running()
    begin, began = host.use(service), time.monotonic()
    time.sleep(_CALM_S)
    end = host.use(service)
    return end, 100 * (end.cpu_s - begin.cpu_s) / (time.monotonic() - began)


def _round(soak: _Soak, ending: float) -> None:
    """Carry out each burst and each fault once; no bursts in the last minutes."""
    soak.rounds += 1
    works: list[Callable[[_Soak], None]] = [
        _steady, _burst, _scan, _dead_receiver, _hanging_receiver, _flush, _removed, _link, _reload,
        _quiet, _killed_delivery, _killed_service,
    ]  # fmt: skip
    if time.monotonic() > ending - _FLOW_S:
        works.remove(_burst)
    soak.dice.shuffle(works)
    for work in works:
        if time.monotonic() >= ending:
            return
        print(f"{soak.names[0]}: round {soak.rounds}, {work.__name__[1:]}", file=sys.stderr)
        work(soak)
        soak.running()


def _quiet(_: _Soak) -> None:
    time.sleep(20)


def _steady(soak: _Soak) -> None:
    began = time.monotonic()
    for second in range(15):
        for name in soak.names:
            soak.attempt(name, host.REFUSED, soak.dice.choice(_PORTS))
        time.sleep(max(0.0, began + second + 1 - time.monotonic()))


def _burst(soak: _Soak) -> None:
    name = soak.dice.choice(soak.names)
    for each in range(_BURST_FLOWS):
        soak.attempt(name, f"198.51.100.{each % 250}", _PORTS.start + each)


def _scan(soak: _Soak) -> None:
    name = soak.dice.choice(soak.names)
    for each in range(250):
        soak.attempt(name, f"192.0.2.{each}", 22)
        time.sleep(0.01)


def _dead_receiver(soak: _Soak) -> None:
    with soak.receiver.dead():
        _steady(soak)
        soak.shown("a dead receiver in /readyz", lambda: soak.watch.says("receiver"))
        soak.shown("a dead receiver in the metrics", lambda: not soak.watch.is_sink_up)
    _delivers_again(soak, "a dead receiver")


def _hanging_receiver(soak: _Soak) -> None:
    with soak.receiver.hanging():
        _steady(soak)
        soak.shown("a hanging receiver in the metrics", lambda: not soak.watch.is_sink_up)
    _delivers_again(soak, "a hanging receiver")


def _delivers_again(soak: _Soak, what: str) -> None:
    soak.attempt(soak.names[0], host.REFUSED, soak.dice.choice(_PORTS))
    soak.shown(f"the end of {what} in the metrics", lambda: soak.watch.is_sink_up)
    soak.shown(f"the end of {what} in /readyz", lambda: not soak.watch.says("receiver"))


def _flush(soak: _Soak) -> None:
    """Remove the fence of a sandbox; the service restores it."""
    name = soak.dice.choice(soak.names[:-1])
    since = soak.size()
    soak.shown("no packet is pending", lambda: soak.watch.pending(name) == 0, 90.0)
    named(name).call(lambda: stage.run_quietly("nft", "flush", "ruleset"))
    soak.shown("an event about a flush", lambda: soak.has_event(since, '"class_uid":5019', name))
    soak.shown("a restored fence", lambda: soak.watch.is_fence_active(name))
    for each in range(50):
        soak.attempt(name, host.REFUSED, _PORTS.start + each)


def _removed(soak: _Soak) -> None:
    """Remove a fence that the service does not restore; an operator installs it again."""
    name = soak.unhealed
    since = soak.size()
    soak.shown("no packet is pending", lambda: soak.watch.pending(name) == 0, 90.0)
    named(name).call(lambda: stage.run_quietly("nft", "flush", "ruleset"))
    soak.shown("a removed fence in the metrics", lambda: not soak.watch.is_fence_active(name))
    soak.shown("a removed fence in /readyz", lambda: not soak.watch.is_ready)
    soak.shown("an event about a removal", lambda: soak.has_event(since, '"class_uid":5019', name))
    time.sleep(10)
    host.install(name, soak.state)
    soak.shown("an installed fence in the metrics", lambda: soak.watch.is_fence_active(name))
    soak.shown("an installed fence in /readyz", lambda: soak.watch.is_ready)


def _link(soak: _Soak) -> None:
    """Add a link, send by it, and take both links away."""
    name = soak.dice.choice(soak.names)
    _ip(name, "link", "add", "up1", "type", "veth", "peer", "name", "far1")
    _ip(name, "link", "set", "far1", "up")
    _ip(name, "link", "set", "up1", "up")
    _ip(name, "address", "add", "10.9.9.2/24", "dev", "up1")
    for port in range(20):
        soak.attempt(name, "10.9.9.3", _PORTS.start + port)
    _ip(name, "link", "delete", "up1")
    _ip(name, "link", "set", host.UPLINK, "down")
    _ip(name, "link", "set", host.UPLINK, "up")
    _ip(name, "route", "add", "default", "via", "10.0.0.1")
    for port in range(20):
        soak.attempt(name, host.REFUSED, _PORTS.start + port)


def _ip(name: str, *arguments: str) -> None:
    stage.run_quietly("ip", "-n", name, *arguments)


def _reload(soak: _Soak) -> None:
    soak.batch = 300 if soak.batch == 500 else 500
    soak.configure()
    soak.running().send_signal(signal.SIGHUP)
    _steady(soak)
    soak.shown("readiness after a reload", lambda: soak.watch.is_ready and soak.watch.is_sink_up)


def _killed_delivery(soak: _Soak) -> None:
    service = soak.running()
    _, *children = host.processes(service)
    for pid in children:
        stage.kill(pid)
    _steady(soak)
    soak.shown("delivery after its kill", lambda: soak.watch.waiting == 0)


def _killed_service(soak: _Soak) -> None:
    service = soak.running()
    for number, name in enumerate(soak.names):
        soak.attempt(name, host.REFUSED, _PORTS.start + number)
    service.kill()
    service.wait()
    soak.watch.forget()
    for number, name in enumerate(soak.names):
        soak.attempt(name, host.REFUSED, _PORTS.start + 100 + number)
    soak.start()


def _stop(soak: _Soak) -> None:
    soak.shown("all events delivered", lambda: soak.watch.waiting == 0, 60.0)
    service = soak.running()
    service.terminate()
    if code := service.wait(60):
        soak.failures.append(f"the service ended with {code}")


def _reported(soak: _Soak) -> tuple[Counter[str], set[str], int]:
    """Return the packets by sandbox, the uids, and the number of doubled lines."""
    packets: Counter[str] = Counter()
    uids: set[str] = set()
    doubled = 0
    for line in soak.output.read_bytes().splitlines():
        event = json.loads(line)
        uid = event["metadata"]["uid"]
        if uid in uids:
            doubled += 1
            continue
        uids.add(uid)
        if event["class_uid"] == _NETWORK_ACTIVITY:
            packets[event["unmapped"]["sandbox"]] += event["count"]
    return packets, uids, doubled


def main(arguments: Sequence[str]) -> None:
    """Soak for the given minutes, and exit."""
    minutes = float(arguments[0]) if arguments else _MINUTES
    command.run((lambda: run(minutes),))


if __name__ == "__main__":
    main(sys.argv[1:])
