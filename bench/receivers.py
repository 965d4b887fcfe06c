"""Who sinks deliver to while they are measured: programs of their own, on this machine."""

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

Kind: TypeAlias = Literal["tcp", "unix", "http", "bulk"]

HOST: Final = "127.0.0.1"
_PROGRAM: Final = Path(__file__).with_name("receiver.py")


@dataclass(frozen=True, slots=True)
class Receiver:
    """One that listens at ``place``, a port or a socket's path."""

    place: str
    counts: Path

    @property
    def events(self) -> int:
        """How many it has had."""
        found = self.counts.read_bytes()
        return int(struct.unpack("=Q", found)[0]) if found else 0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server((HOST, 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def nobodys_port() -> Iterator[int]:
    """A port that is taken, so that nobody will listen at it meanwhile."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def listening(kind: Kind, folder: Path) -> Iterator[Receiver]:
    """Start one; it is ended when the context is left."""
    place = str(folder / "socket") if kind == "unix" else str(free_port())
    counts = folder / "counts"
    counts.touch()
    command = [sys.executable, str(_PROGRAM), kind, place, str(counts)]
    with started(command, place):
        yield Receiver(place, counts)


@contextlib.contextmanager
def started(command: Sequence[str], place: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that listens, and wait until it does; it is ended with the context."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with stage.ending(child):
        stage.wait_for(f"listening at {place}", lambda: _listens(place), child)
        yield child


def _listens(place: str) -> bool:
    is_port = place.isdecimal()
    family = socket.AF_INET if is_port else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        return trial.connect_ex((HOST, int(place)) if is_port else place) == 0
