"""Functions that drop capabilities, and raise the priority of the service.

Capabilities and priority belong to a thread. New threads and child processes inherit them. So call
these functions before the first thread starts. The constants are from
``include/uapi/linux/capability.h`` and ``prctl.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_PDEATHSIG: Final = 1
_VERSION_3: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two 32-bit words a set
_NICE: Final = -10
_SWITCH_SECONDS: Final = 0.001
_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")


class Capability(enum.IntEnum):
    """Linux capabilities that ocsf-nft can use, with the kernel's numbers."""

    NET_ADMIN = 12
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYSLOG = 34
    PERFMON = 38
    BPF = 39


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def raise_priority() -> None:
    """Raise the priority of the calling thread, and shorten Python's thread switch interval.

    Without CAP_SYS_NICE, the priority stays the same. Call this before :func:`keep_only`, which
    drops that capability.
    """
    # With normal priority, a sandbox that uses every core could delay the restore of a fence.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    # Threads of this process must not wait long for each other either.
    sys.setswitchinterval(_SWITCH_SECONDS)


def raise_descriptor_limit() -> None:
    """Allow as many open descriptors as the system permits: a service needs some per sandbox."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_only(needed: AbstractSet[Capability]) -> None:
    """Drop all capabilities of the calling thread except ``needed``, permanently.

    Later threads and child processes lack the dropped capabilities too. Also set the flag
    ``no_new_privs``. Raises UnsupportedError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header, held = _Header(_VERSION_3, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), ctypes.byref(held)))
    mask = sum(1 << capability for capability in needed)
    # The bounding set limits the capabilities of a program that root executes. Dropping from it
    # needs a privilege; without that privilege, such a program gains nothing.
    for capability in range(int(_LAST.read_text("ascii")) + 1):
        if not mask >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    for word in range(2):
        remaining = mask >> 32 * word & 0xFFFFFFFF
        held[word].permitted &= remaining
        held[word].effective &= remaining
        held[word].inheritable &= remaining
    _check(libc.capset(ctypes.byref(header), ctypes.byref(held)))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends.

    ``parent`` is the process id of that thread's process. Raises UnsupportedError if the kernel
    refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _check(result: int) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise UnsupportedError(f"dropping privileges failed: {reason}")
