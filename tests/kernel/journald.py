"""Separate journald for tests: it reads the real kernel log and writes into a folder.

It runs without systemd as PID 1, in a private mount namespace with an empty /run, so that it does
not interfere with a journald of the machine. Audit must be off: otherwise journald would switch on
auditing for the whole machine.
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
    """Process of a running journald, and the folder of its journal files."""

    process: subprocess.Popen[bytes]
    directory: Path


@contextlib.contextmanager
def journald(folder: Path, *, compress: str = "no") -> Iterator[Journald]:
    """Run a journald with files below ``folder``; it is stopped when the context ends.

    Before the yield it has read all of the kernel log, and logged the number of missed messages.
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
    """Return a command prefix that makes the journal in ``folder`` the machine's journal."""
    script = (
        "mount -t tmpfs none /var/log && mkdir /var/log/journal && "
        'mount --bind "$1" /var/log/journal && shift && exec "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, "sh", str(folder / "log" / "journal"))


def _directory(process: subprocess.Popen[bytes], parent: Path) -> Path:
    """Return the journal folder once journald has created its file and read up to now."""
    marker = f"journald is to reach {secrets.token_hex(8)}"
    kernel_log.write(marker)
    deadline = time.monotonic() + 120
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
