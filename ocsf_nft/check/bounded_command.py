"""Run a program that only looks, and take no more of its answer than there is room for.

What it lists was written by others: its size and the time that it takes are theirs to choose.
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
#: What an answer may take, and the program's own memory: lists of some 50,000 rules.
_ANSWER_BYTES: Final = 32 << 20
_MEMORY_BYTES: Final = 2 << 30
_CHUNK_BYTES: Final = 1 << 16
_COMPLAINT_BYTES: Final = 1 << 12
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": ":".join(map(str, TRUSTED))}


class NoAnswerError(UnsupportedError):
    """A program gave no answer, or one that is too long, or said why it gives none."""


def answer(namespace: Namespace, command: Sequence[str], limit: int = _ANSWER_BYTES) -> bytes:
    """What a program prints, run inside a namespace; ``command`` begins with its path.

    Raises NoAnswerError when it fails, takes 20 s, or prints more than ``limit`` bytes.
    """
    try:
        process = namespace.call(lambda: _start(command))
    except OSError as error:
        raise NoAnswerError(f"{command[0]} can't be run: {error.strerror}") from error
    try:
        return _read(process, command[0], limit)
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
        process_group=0,  # Ctrl-C is ours to handle
    )
    with contextlib.suppress(OSError):  # it has ended by now
        resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    return process


def _read(process: subprocess.Popen[bytes], program: str, limit: int) -> bytes:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    answered, complaint = _both(process, program, limit, deadline)
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"{program} doesn't end") from error
    if code != 0:
        said = " ".join(complaint.decode("utf-8", "replace").split())[:200]
        raise NoAnswerError(f"{program} failed: {said or f'exit {code}'}")
    return answered


def _both(
    process: subprocess.Popen[bytes], program: str, limit: int, deadline: float
) -> tuple[bytes, bytes]:
    """What it says on its two outputs, until it closes them."""
    answered, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, into in ((process.stdout, answered), (process.stderr, complaint)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, into)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise NoAnswerError(f"{program} gave no answer in {_TIMEOUT_SECONDS:.0f} s")
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is answered or len(complaint) < _COMPLAINT_BYTES:
                    key.data.extend(chunk)
            if len(answered) > limit:
                raise NoAnswerError(f"{program} has more than {limit >> 20} MiB to tell")
    return bytes(answered), bytes(complaint)
