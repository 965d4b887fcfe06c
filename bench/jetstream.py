"""A NATS server with a stream, as a target of deliveries."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import nats
from nats.js.api import StorageType

from bench import receivers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUBJECT: Final = "ocsf"


def binary() -> str | None:
    """Return its path; None if it is not installed."""
    return shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")


def version(path: str) -> str:
    """Return the name and version that it prints."""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.strip().replace(": v", " ")


@contextlib.contextmanager
def serving(path: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a running server; its stream is stored in files, as by default."""
    port = str(receivers.free_port())
    command = [
        path, "--jetstream", "--store_dir", str(folder / "jetstream"), "--addr", receivers.HOST,
        "--port", port,
    ]  # fmt: skip
    with receivers.started(command, port):
        url = f"nats://{receivers.HOST}:{port}"
        asyncio.run(_make_stream(url))
        yield url


async def events(url: str) -> int:
    """Return the number of events of the stream."""
    link = await nats.connect(url)
    try:
        found = await link.jetstream().stream_info(SUBJECT)
        return found.state.messages
    finally:
        await link.close()


async def _make_stream(url: str) -> None:
    link = await nats.connect(url)
    try:
        await link.jetstream().add_stream(
            name=SUBJECT, subjects=[SUBJECT], storage=StorageType.FILE
        )
    finally:
        await link.close()
