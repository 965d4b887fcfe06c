"""A service in the soak, and the works of a round: traffic, and faults that it must show."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from bench import host, stage
from ocsf_nft.netns import named

if TYPE_CHECKING:
    import random
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from bench.soak_receiver import Receiver
    from bench.soak_watch import Watch

#: Seconds in which the service must show a fault, and that the fault is over.
_SHOWN_S: Final = 30.0
_BURST_FLOWS: Final = 20_000
_PORTS: Final = range(20_000, 60_000)
_STORE_BYTES: Final = 64 << 20
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
class Soak:
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
        """Return the state directory."""
        return self.folder / "state"

    @property
    def output(self) -> Path:
        """Return the file with the events."""
        return self.folder / "events.jsonl"

    @property
    def unhealed(self) -> str:
        """Return the sandbox without ``self_heal``: a change of its fence is only reported."""
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

    def settled(self, name: str) -> None:
        """Wait until each packet of a sandbox is in an event; record a failure if one is not."""
        answers = self.watch.answers + 3  # of readings that began after the last packet
        self.shown(
            f"no packet of {name} is pending",
            lambda: self.watch.answers >= answers and self.watch.pending(name) == 0,
            90.0,
        )

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


def _quiet(_: Soak) -> None:
    time.sleep(20)


def _steady(soak: Soak) -> None:
    began = time.monotonic()
    for second in range(15):
        for name in soak.names:
            soak.attempt(name, host.REFUSED, soak.dice.choice(_PORTS))
        time.sleep(max(0.0, began + second + 1 - time.monotonic()))


def _burst(soak: Soak) -> None:
    name = soak.dice.choice(soak.names)
    for each in range(_BURST_FLOWS):
        soak.attempt(name, f"198.51.100.{each % 250}", _PORTS.start + each)


def _scan(soak: Soak) -> None:
    name = soak.dice.choice(soak.names)
    for each in range(250):
        soak.attempt(name, f"192.0.2.{each}", 22)
        time.sleep(0.01)


def _dead_receiver(soak: Soak) -> None:
    with soak.receiver.dead():
        _steady(soak)
        soak.shown("a dead receiver in /readyz", lambda: soak.watch.says("receiver"))
        soak.shown("a dead receiver in the metrics", lambda: not soak.watch.is_sink_up)
    _delivers_again(soak, "a dead receiver")


def _hanging_receiver(soak: Soak) -> None:
    with soak.receiver.hanging():
        _steady(soak)
        soak.shown("a hanging receiver in the metrics", lambda: not soak.watch.is_sink_up)
    _delivers_again(soak, "a hanging receiver")


def _delivers_again(soak: Soak, what: str) -> None:
    soak.attempt(soak.names[0], host.REFUSED, soak.dice.choice(_PORTS))
    soak.shown(f"the end of {what} in the metrics", lambda: soak.watch.is_sink_up)
    soak.shown(f"the end of {what} in /readyz", lambda: not soak.watch.says("receiver"))


def _flush(soak: Soak) -> None:
    """Remove the fence of a sandbox; the service restores it."""
    name = soak.dice.choice(soak.names[:-1])
    since = soak.size()
    soak.settled(name)  # what the kernel alone has counted is lost
    named(name).call(lambda: stage.run_quietly("nft", "flush", "ruleset"))
    soak.shown("an event about a flush", lambda: soak.has_event(since, '"class_uid":5019', name))
    soak.shown("a restored fence", lambda: soak.watch.is_fence_active(name))
    for each in range(50):
        soak.attempt(name, host.REFUSED, _PORTS.start + each)


def _removed(soak: Soak) -> None:
    """Remove a fence that the service does not restore; an operator installs it again."""
    name = soak.unhealed
    since = soak.size()
    soak.settled(name)
    named(name).call(lambda: stage.run_quietly("nft", "flush", "ruleset"))
    soak.shown("a removed fence in the metrics", lambda: not soak.watch.is_fence_active(name))
    soak.shown("a removed fence in /readyz", lambda: not soak.watch.is_ready)
    soak.shown("an event about a removal", lambda: soak.has_event(since, '"class_uid":5019', name))
    time.sleep(10)
    host.install(name, soak.state)
    soak.shown("an installed fence in the metrics", lambda: soak.watch.is_fence_active(name))
    soak.shown("an installed fence in /readyz", lambda: soak.watch.is_ready)


def _link(soak: Soak) -> None:
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


def _reload(soak: Soak) -> None:
    soak.batch = 300 if soak.batch == 500 else 500
    soak.configure()
    soak.running().send_signal(signal.SIGHUP)
    _steady(soak)
    soak.shown("readiness after a reload", lambda: soak.watch.is_ready and soak.watch.is_sink_up)


def _killed_delivery(soak: Soak) -> None:
    service = soak.running()
    _, *children = host.processes(service)
    for pid in children:
        stage.kill(pid)
    _steady(soak)
    soak.shown("delivery after its kill", lambda: soak.watch.waiting == 0)


def _killed_service(soak: Soak) -> None:
    service = soak.running()
    for number, name in enumerate(soak.names):
        soak.attempt(name, host.REFUSED, _PORTS.start + number)
    service.kill()
    service.wait()
    soak.watch.forget()
    for number, name in enumerate(soak.names):
        soak.attempt(name, host.REFUSED, _PORTS.start + 100 + number)
    soak.start()


Work: TypeAlias = "Callable[[Soak], None]"
#: What a round does once each; a burst fills the sets of a fence.
WORKS: Final[tuple[Work, ...]] = (
    _steady, _scan, _burst, _dead_receiver, _hanging_receiver, _flush, _removed, _link, _reload,
    _quiet, _killed_delivery, _killed_service,
)  # fmt: skip
