"""Execution of programs that list firewall rules, with limits on their output, memory and time.

Any program may have created the rules, so a listing may be very long or slow.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import subprocess
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.nft import TRUSTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.netns import Namespace

_TIMEOUT_SECONDS: Final = 20.0
#: Limits of the output and of the program's own memory: enough for a list of some 50,000 rules.
_OUTPUT_BYTES: Final = 32 << 20
_MEMORY_BYTES: Final = 2 << 30
_CHUNK_BYTES: Final = 1 << 16
_ERROR_BYTES: Final = 1 << 12
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": ":".join(map(str, TRUSTED))}


class CommandError(UnsupportedError):
    """Error: a program can't be run, failed, took too long, or printed too much."""


def command_output(namespace: Namespace, command: Sequence[str]) -> bytes:
    """Run a program inside a namespace, and return its standard output.

    ``command`` begins with the program's path. Raises CommandError if the program fails, takes
    longer than 20 s, or prints more than 32 MiB.
    """
    try:
        process = namespace.call(lambda: _start(command))
    except OSError as error:
        raise CommandError(f"{command[0]} can't be run: {error.strerror}") from error
    try:
        return _read(process, command[0])
    finally:
        process.kill()
        process.communicate()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_ENVIRONMENT,
        process_group=0,  # so that Ctrl-C reaches only this process
    )
    with contextlib.suppress(OSError):  # it has already exited
        resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    return process


def _read(process: subprocess.Popen[bytes], program: str) -> bytes:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    output, errors = _read_both(process, program, deadline)
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{program} doesn't exit") from error
    if code != 0:
        reason = " ".join(errors.decode("utf-8", "replace").split())[:200]
        raise CommandError(f"{program} failed: {reason or f'exit {code}'}")
    return output


def _read_both(
    process: subprocess.Popen[bytes], program: str, deadline: float
) -> tuple[bytes, bytes]:
    """Return the standard output and the start of the standard error of a process."""
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, buffer in ((process.stdout, output), (process.stderr, errors)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, buffer)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CommandError(f"{program} gave no answer in {_TIMEOUT_SECONDS:.0f} s")
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is output or len(errors) < _ERROR_BYTES:
                    key.data.extend(chunk)
            if len(output) > _OUTPUT_BYTES:
                raise CommandError(f"{program} printed more than {_OUTPUT_BYTES >> 20} MiB")
    return bytes(output), bytes(errors)
