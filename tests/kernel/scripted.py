"""Python programs that make attempts in a sandbox and print their process ids."""

from __future__ import annotations

import os
import subprocess
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ocsf_nft.lab import Lab

PYTHON: Final = os.path.realpath("/usr/bin/python3")
BY: Final = (PYTHON, "-I", "-c")
START: Final = textwrap.dedent("""
    import contextlib, ctypes, os, signal, socket, struct, sys, time
    TO4, TO6, MAPPED = ("203.0.113.7", 443), ("2001:db8::7", 443), ("::ffff:203.0.113.7", 443)
    libc = ctypes.CDLL(None, use_errno=True)
    def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
    def tcp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_STREAM)
    refused = contextlib.suppress(OSError)
    def print_pid(): print(os.getpid(), flush=True)
""")


def run(lab: Lab, program: str, by: tuple[str, ...] = BY) -> list[int]:
    """Run a program in the sandbox to its end and return the numbers that it printed."""
    done = lab.sandbox_namespace.call(
        lambda: subprocess.run(
            [*by, f"{START}\n{textwrap.dedent(program)}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    )
    return list(map(int, done.stdout.split()))
