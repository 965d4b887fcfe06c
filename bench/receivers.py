"""Receivers of measured sinks: separate programs on this machine."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from bench import stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Kind: TypeAlias = Literal["tcp", "unix", "http", "bulk", "hec", "otlp"]

HOST: Final = "127.0.0.1"
_PROGRAM: Final = Path(__file__).with_name("receiver.py")


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that listens at ``address``, a port or a socket's path."""

    address: str
    counts: Path

    @property
    def events(self) -> int:
        """Return the number of received events."""
        found = self.counts.read_bytes()
        return int(struct.unpack("=Q", found)[0]) if found else 0


def free_port() -> int:
    """Return a port without a listener."""
    with socket.create_server((HOST, 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def unused_port() -> Iterator[int]:
    """Yield a port that is bound without a listener, so that no other process can listen there."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def listening(kind: Kind, folder: Path) -> Iterator[Receiver]:
    """Start a receiver; stop it at the end of the context."""
    address = str(folder / "socket") if kind == "unix" else str(free_port())
    counts = folder / "counts"
    counts.touch()
    command = [sys.executable, str(_PROGRAM), kind, address, str(counts)]
    with started(command, address):
        yield Receiver(address, counts)


@contextlib.contextmanager
def started(command: Sequence[str], address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that listens, and wait until it does; stop it at the end of the context."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with stage.ending(child):
        stage.wait_for(f"listening at {address}", lambda: _listens(address), child)
        yield child


def _listens(address: str) -> bool:
    is_port = address.isdecimal()
    family = socket.AF_INET if is_port else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        return trial.connect_ex((HOST, int(address)) if is_port else address) == 0
