"""Events on their way out of a run, whatever becomes of disks, files and processes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.delivery.store import FILE
from ocsf_nft.fence import installer
from tests.kernel import attempts, command, conftest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

PORTS = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own: one that is full, or read-only, may be made so."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (4096, 1):
            while True:
                file.write(b"\0" * size)
    return path


def options(lab: Lab, state: StateDirectory, output: Path) -> list[str]:
    return [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox, "--proxy", "10.200.0.1:3128"),
        *("--state-dir", str(state.path), "--output", str(output)),
    ]


def ports(path: Path) -> Counter[int]:
    """The packets that were told, by the port that they were for."""
    found: Counter[int] = Counter()
    if path.exists():
        for line in path.read_bytes().splitlines():
            event = orjson.loads(line)
            if event["class_uid"] == 4001:
                found[event["dst_endpoint"]["port"]] += event["count"]
    return found


def wait_for(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.02)


def sweep(lab: Lab, first: int = 1000) -> dict[int, int]:
    """Try each of some ports once; what is to be told."""
    attempts.sweep(lab.sandbox_namespace, first, PORTS)
    return dict.fromkeys(range(first, first + PORTS), 1)
