"""The guest's end of the test: it executes requests that arrive over a virtio port.

A request is a line of JSON, ``{"id": 1, "call": "shell", "with": {...}}``. The answer is also a
line, ``{"id": 1, "result": ...}``, or has ``"error"`` with the type and text of the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    import io

_DEVICE: Final = "sb0"
_ETH_P_ALL: Final = 3  # include/uapi/linux/if_ether.h
_PACKET_OUTGOING: Final = 4  # include/uapi/linux/if_packet.h
_ESCAPES: Final = {escape.name: escape for escape in ESCAPES}
#: Frames from other hosts since the start of the capture.
_captured: list[bytes] = []


def shell(*command: str, seconds: int = 900) -> dict[str, Any]:
    """Run a command of the guest to its end; processes that it started may continue."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            check=False, timeout=seconds,
        )  # fmt: skip
        stdout.seek(0)
        stderr.seek(0)
        return {"code": done.returncode, "stdout": stdout.read(), "stderr": stderr.read()}


def terminate(words: str) -> int:
    """Terminate the processes whose command line has these words; return their number.

    Children of such a process are terminated, but not counted: a child has the words too until it
    executes another program.
    """
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if words.encode() in path.read_bytes().replace(b"\0", b" "):
                _, _, fields = (path.parent / "stat").read_text("ascii", "replace").rpartition(")")
                found[int(path.parent.name)] = int(fields.split()[1])
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    return sum(parent not in found for parent in found.values())


def escape(name: str) -> dict[str, Any]:
    """Attempt an escape; return its duration and the packets refused meanwhile by rule."""
    before = refused()
    began = time.monotonic()
    _ESCAPES[name].attempt()
    seconds = time.monotonic() - began
    after = refused()
    rules = {rule: after[rule] - before.get(rule, 0) for rule in after}
    return {"seconds": seconds, "refused": rules}


def talk(address: str, port: int, seconds: float = 300) -> str:
    """Connect by TCP and return the text of the other end, or the name of the error."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as sock:
            return sock.recv(1000).decode()
    except OSError as error:
        return type(error).__name__


def frame(content: str) -> None:
    """Send a frame, given in hexadecimal."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((_DEVICE, 0))
        sock.send(bytes.fromhex(content))


def start_capture() -> None:
    """Store each incoming frame from now on."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.bind((_DEVICE, _ETH_P_ALL))

    def store() -> None:
        while True:
            content, address = sock.recvfrom(65535)
            if address[2] != _PACKET_OUTGOING:
                _captured.append(content)

    threading.Thread(target=store, daemon=True).start()


def captured_frames() -> list[str]:
    """Return the incoming frames so far, in hexadecimal."""
    return [content.hex() for content in _captured]


def refused() -> dict[str, int]:
    """Return the fence's own totals by rule."""
    listed = subprocess.run(
        ["nft", "-j", "list", "counters"], capture_output=True, text=True, check=True
    )
    return {
        entry["counter"]["name"].removeprefix("refused_"): entry["counter"]["packets"]
        for entry in json.loads(listed.stdout)["nftables"]
        if entry.get("counter", {}).get("name", "").startswith("refused_")
    }


def events(path: str = "/var/log/ocsf-nft/events.jsonl") -> list[Any]:
    """Return all events so far, without an incomplete last line."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path(path).read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    return []


def move(source: str, target: str) -> None:
    """Move a file."""
    shutil.move(source, target)


def write(path: str, text: str) -> None:
    """Write an executable file."""
    Path(path).write_text(text, "utf-8")
    Path(path).chmod(0o755)


_CALLS: Final = {
    call.__name__: call
    for call in (
        shell,
        terminate,
        escape,
        talk,
        frame,
        start_capture,
        captured_frames,
        refused,
        events,
        move,
        write,
    )
}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        result = _CALLS[request["call"]](*request["with"], **request["options"])
    except Exception as error:  # noqa: BLE001 - the test reports every error
        return {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
    return {"id": request["id"], "result": result}


def main() -> None:
    """Serve requests until the machine is powered off."""
    (path,) = Path("/dev").glob("vport*")
    with path.open("r+b", buffering=0) as port:
        _send(port, {"id": 0, "result": sys.argv[1]})
        for line in iter(port.readline, b""):
            _send(port, _answer(json.loads(line)))


def _send(port: io.FileIO, answer: dict[str, Any]) -> None:
    left = json.dumps(answer).encode() + b"\n"
    while left:  # a port accepts 32 KiB at once (drivers/char/virtio_console.c)
        left = left[port.write(left) :]


if __name__ == "__main__":
    main()
