"""The real service, for containers of real engines."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.control_request import ControlSocket, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Maximum time of a step on a loaded machine.
SECONDS: Final = 60.0
_CONFIG = """
control = "{folder}/service.sock"
output = "{folder}/events.jsonl"
state_dir = "{folder}/state"

[[attach]]
name = "agents"
proxy = ["192.0.2.1:3128"]

[[attach]]
name = "free"
match = {{ label = {{ free = "yes" }} }}
action = "allow"
"""


@dataclass(frozen=True, slots=True)
class Running:
    """Running service, and the file of its events."""

    service: ControlSocket
    path: Path

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(
        self, holds: Callable[[dict[str, Any]], bool], number: int
    ) -> list[dict[str, Any]]:
        """Return the events for which ``holds`` is true, when there are ``number`` of them."""
        end = time.monotonic() + SECONDS
        while len(found := [each for each in self.events() if holds(each)]) < number:
            assert time.monotonic() < end, [each.get("message") for each in self.events()]
            time.sleep(0.05)
        return found

    def sandboxes(self) -> list[str]:
        """Return the names of the sandboxes."""
        return [each["name"] for each in self.service.request("GET", "/v1/sandboxes")["sandboxes"]]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Running]:
    """Run a service with the control socket `service.sock` in a folder."""
    path = folder / "service.toml"
    path.write_text(_CONFIG.format(folder=folder), encoding="utf-8")
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ocsf_nft", "run", "--config", path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        service = ControlSocket(f"{folder}/service.sock", 5.0)
        end = time.monotonic() + SECONDS
        while not _answers(service):
            assert process.poll() is None, (folder / "service.log").read_text("utf-8")
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Running(service, folder / "events.jsonl")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=SECONDS)


def _answers(service: ControlSocket) -> bool:
    try:
        service.request("GET", "/v1/status")
    except ServiceError:
        return False
    return True
