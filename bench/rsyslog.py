"""rsyslog as the peer in delivery: it receives lines by TCP, queues them on the disk, sends them.

It acknowledges data to the sender when its system has it. The queue survives the end of the
process; the difference between the two queues here is whether it survives a power cut.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import receivers, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_CONFIG: Final = """
global(workDirectory="{folder}" maxMessageSize="64k")
module(load="imptcp")
template(name="line" type="string" string="%msg%\\n")
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="on")
ruleset(
    name="on" queue.type="Disk" queue.filename="queue" queue.maxDiskSpace="1g"
    queue.dequeueBatchSize="{batch}" {synced}
) {{ {action} }}
"""
#: The same batch size as our sinks use.
_BATCH: Final = 500
_SYNCED: Final = f'queue.syncQueueFiles="on" queue.checkpointInterval="{_BATCH}"'
_TO_TCP: Final = (
    'action(type="omfwd" target="127.0.0.1" port="{target}" protocol="tcp" '
    'TCP_Framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format")'
)
_TO_FILE: Final = 'action(type="omfile" file="{target}" template="line" sync="on")'
_HEADER: Final = b"<134>1 2026-11-25T00:00:00Z host ocsf-nft - - - "
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Number of events, and the wall and CPU time for them."""

    events: int
    seconds: float
    cpu_s: float


def binary() -> str | None:
    """Return its path; None if it is not installed."""
    return shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def version(path: str) -> str:
    """Return the name and version that it prints."""
    shown = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return " ".join(shown.stdout.split()[:2]).replace("rsyslogd", "rsyslog")


def to_tcp(path: str, folder: Path, events: Sequence[bytes], *, is_synced: bool) -> Work:
    """Measure how it sends events to a receiver by TCP."""
    with receivers.listening("tcp", folder) as receiver:
        action = _TO_TCP.format(target=receiver.address)
        with _running(path, folder, action, is_synced=is_synced) as (child, port):
            return _sent(child, port, events, lambda: receiver.events)


def to_file(path: str, folder: Path, events: Sequence[bytes], *, is_synced: bool) -> Work:
    """Measure how it appends events to a file and syncs that."""
    file = folder / "events.jsonl"
    size = sum(len(event) + 1 for event in events)
    action = _TO_FILE.format(target=file)
    with _running(path, folder, action, is_synced=is_synced) as (child, port):

        def written() -> int:
            return len(events) if file.exists() and file.stat().st_size >= size else 0

        return _sent(child, port, events, written)


@contextlib.contextmanager
def _running(
    path: str, folder: Path, action: str, *, is_synced: bool
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = receivers.free_port()
    config = folder / "rsyslog.conf"
    synced = _SYNCED if is_synced else ""
    text = _CONFIG.format(folder=folder, port=port, action=action, synced=synced, batch=_BATCH)
    config.write_text(text, "utf-8")
    command = [path, "-n", "-f", str(config), "-i", str(folder / "pid")]
    with receivers.started(command, str(port)) as child:
        yield child, port


def _sent(
    child: subprocess.Popen[bytes], port: int, events: Sequence[bytes], came: Callable[[], int]
) -> Work:
    """Send events, and wait until all of them have come out."""
    messages = (_HEADER + event for event in events)
    data = b"".join(b"%d %b" % (len(message), message) for message in messages)
    cpu_s, begun = stage.cpu_seconds(child), time.perf_counter()
    with socket.create_connection((receivers.HOST, port), _TIMEOUT_S) as connection:
        connection.sendall(data)
        stage.wait_for(
            "delivery by rsyslog", lambda: came() >= len(events), child, seconds=_TIMEOUT_S
        )
    seconds = time.perf_counter() - begun
    return Work(events=len(events), seconds=seconds, cpu_s=stage.cpu_seconds(child) - cpu_s)
