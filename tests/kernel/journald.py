"""A journald of the test's own: it reads the real kernel log and writes into a folder.

It runs without systemd as PID 1, in a private mount namespace whose /run is empty, so that it
neither sees nor disturbs a journald of the machine. Audit must be off: journald would switch
auditing on for the whole machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.kernel import kernel_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BINARY: Final = "/usr/lib/systemd/systemd-journald"
_CONFIGURATION: Final = """[Journal]
Storage=volatile
Compress={compress}
Audit=no
ReadKMsg=yes
Seal=no
RateLimitBurst=0
"""
_START: Final = """
mount -t tmpfs none /run && mkdir -p /run/systemd /run/log &&
mount --bind "$1" /run/systemd && mount --bind "$2" /run/log && exec "$3"
"""


@dataclass(frozen=True, slots=True)
class Journald:
    """A running journald and the folder of its journal files."""

    process: subprocess.Popen[bytes]
    directory: Path


@contextlib.contextmanager
def journald(folder: Path, *, compress: str = "no") -> Iterator[Journald]:
    """Run a journald whose files lie below ``folder``; it is gone when the context ends.

    It has read all that the kernel log held, and said what it missed of it, before it is yielded.
    """
    state, log = folder / "systemd", folder / "log"
    (state / "journald.conf.d").mkdir(parents=True)
    (log / "journal").mkdir(parents=True)
    (state / "journald.conf.d" / "test.conf").write_text(
        _CONFIGURATION.format(compress=compress), encoding="ascii"
    )
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", _START, "sh", str(state), str(log), BINARY],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
    )
    try:
        yield Journald(process, _directory(process, log / "journal"))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def in_journal(folder: Path) -> Sequence[str]:
    """What runs a command where the machine's journal is that of a journald whose folder it is."""
    script = (
        "mount -t tmpfs none /var/log && mkdir /var/log/journal && "
        'mount --bind "$1" /var/log/journal && shift && exec "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, "sh", str(folder / "log" / "journal"))


def _directory(process: subprocess.Popen[bytes], parent: Path) -> Path:
    """The machine's folder, once journald has made its file there and got as far as now."""
    marker = f"journald is to reach {secrets.token_hex(8)}"
    kernel_log.write(marker)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = list(parent.glob("*/system.journal"))
        if found and _holds(found[0].parent, marker):
            return found[0].parent
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"journald did not start (exit {process.poll()})")


def _holds(directory: Path, message: str) -> bool:
    command = ["journalctl", f"--directory={directory}", "--quiet", "--output=cat", "--merge"]
    entry = subprocess.run([*command, f"MESSAGE={message}"], capture_output=True, check=False)
    return message.encode() in entry.stdout
