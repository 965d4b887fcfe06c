"""Keep the capabilities that are needed and drop the others, for good.

Numbers: ``include/uapi/linux/capability.h`` and ``prctl.h``. A thread has its own capabilities, so
this comes before the first thread is started; threads and children inherit what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_VERSION_3: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two 32-bit words a set
_NICE: Final = -10
_SWITCH_SECONDS: Final = 0.001
_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")


class Capability(enum.IntEnum):
    """The capabilities that ocsf-nft has a use for."""

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


def go_first() -> None:
    """Let this process run before most others, as far as it may (CAP_SYS_NICE): before the drop.

    Whoever is refused in a loop on every core is in the way of who puts the fence back.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    # Nor is one of our threads to wait for another for long.
    sys.setswitchinterval(_SWITCH_SECONDS)


def keep_only(wanted: AbstractSet[Capability]) -> None:
    """Drop every capability but these of the calling thread's, of its future threads and children.

    What isn't held is not gained. Raises UnsupportedError when the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header, held = _Header(_VERSION_3, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), ctypes.byref(held)))
    mask = sum(1 << capability for capability in wanted)
    # The bounding set limits what a program that root executes gets; dropping from it is itself
    # privileged, and without the privilege there is nothing to be got.
    for capability in range(int(_LAST.read_text("ascii")) + 1):
        if not mask >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    for word in range(2):
        kept = mask >> 32 * word & 0xFFFFFFFF
        held[word].permitted &= kept
        held[word].effective &= kept
        held[word].inheritable &= kept
    _check(libc.capset(ctypes.byref(header), ctypes.byref(held)))


def _check(result: int) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise UnsupportedError(f"dropping capabilities failed: {reason}")
