"""Common functions of the programs that ``holding`` starts inside the sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"
PORT: Final = 443
OWN_ADDRESS: Final = "10.200.0.2"
OWN_PORT: Final = 5000


def print_pids(**pids: object) -> None:
    """Print the processes with their roles as one line, for ``holding.start``."""
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()


def wait_for_record() -> None:
    """Wait until the test has the record of the attempt, or until standard input ends."""
    os.read(0, 1)


def stay() -> NoReturn:
    """Run until standard input ends, then exit."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def other_program(scenario: str, descriptor: int) -> NoReturn:
    """Replace this process by another scenario of the same module; pass a descriptor to it."""
    texts = sys.argv[1]
    command = [*sys.orig_argv[:4], texts, scenario, str(descriptor)]
    os.execv("/usr/bin/python3", command)  # noqa: S606 - a fixed program


def given_descriptor() -> int:
    """Return the descriptor that :func:`other_program` passed to this program."""
    return int(sys.argv[3])


def udp_socket(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def attempt(
    sock: socket.socket, data: bytes = b"bypass", *, address: str = INTERNET4, port: int = PORT
) -> None:
    with contextlib.suppress(OSError):
        sock.sendto(data, (address, port))
