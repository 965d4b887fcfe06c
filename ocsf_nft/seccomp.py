"""Filter of system calls (seccomp) for a process that talks to the network.

The filter is a program of classic BPF; its input is ``struct seccomp_data`` (seccomp(2)). The
constants are from ``include/uapi/linux/{seccomp,filter,bpf_common,audit,sched,fcntl}.h``,
``asm-generic/{ioctls,sockios}.h`` and ``unistd.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALLOW: Final = 0x7FFF0000  # SECCOMP_RET_ALLOW
_ERROR: Final = 0x00050000  # SECCOMP_RET_ERRNO, with the number of the error
_FORBID: Final = _ERROR | errno.EPERM
#: Offsets in ``struct seccomp_data``: number of the call, architecture, and the low words of the
#: first two arguments on a little-endian machine.
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
#: First number of the calls of x86-64's x32 interface. On other machines there is no such number.
_X32: Final = 0x40000000


class _Machine(NamedTuple):
    """Machine architecture: its column of the tables below, and ``AUDIT_ARCH_…``."""

    column: int
    architecture: int


_MACHINES: Final = {"x86_64": _Machine(0, 0xC000003E), "aarch64": _Machine(1, 0xC00000B7)}
#: Numbers of the forbidden calls, on x86-64 and on arm64; None if there is no such call. No process
#: may be made: it would outlive this one, and keep its locks.
_FORBIDDEN: Final[dict[str, tuple[int, int | None]]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "setns": (308, 268), "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
}  # fmt: skip
#: Only threads may be made.
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_CLONE_THREAD: Final = 0x00010000
#: Signal to a thread, and limits of a process: allowed for this process only.
_TGKILL: Final = (234, 131)
_PRLIMIT64: Final = (302, 261)
#: Calls with forbidden second arguments. With F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN or
#: SIOCSPGRP, the kernel sends a signal to another process; TIOCSTI types into a terminal.
_FORBIDDEN_COMMANDS: Final = {
    "fcntl": ((72, 25), (8, 10, 15)),
    "ioctl": ((16, 29), (0x8901, 0x8902, 0x5412)),
}


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(_Filter)))


def forbid_privileged_calls() -> bool:
    """Forbid calls that a process which only delivers events never needs, for good.

    These calls start programs or processes, change or read other processes, send them signals, or
    change the system. They fail with EPERM, in this thread and in all threads that it starts.
    Return False on a machine for which no filter is known, and if the kernel has no filters. The
    process must have ``no_new_privs``. Raises UnsupportedError if the kernel refuses the filter.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 1 << 32:  # a 32-bit program makes other calls
        return False
    filters = list(_filters(machine, os.getpid()))
    program = _Program(len(filters), (_Filter * len(filters))(*filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0:
        return True
    if (number := ctypes.get_errno()) == errno.EINVAL:  # it was built without them
        return False
    raise UnsupportedError(f"the filter of system calls was refused: {os.strerror(number)}")


def _filters(machine: _Machine, process: int) -> Iterator[_Filter]:
    """Yield the program. It ends at the first return; each block jumps over itself, or returns."""
    column, architecture = machine
    yield _load(_ARCHITECTURE)
    yield _Filter(_JUMP_IF_EQUAL, 1, 0, architecture)
    yield _return(_FORBID)
    yield _load(_NUMBER)
    yield _Filter(_JUMP_IF_AT_LEAST, 0, 1, _X32)
    yield _return(_FORBID)
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            yield from _block(number, [_return(_FORBID)])
    # The C library then uses the other call.
    yield from _block(_CLONE3[column], [_return(_ERROR | errno.ENOSYS)])
    for numbers, check in (
        (_CLONE, [_load(_FIRST), _Filter(_JUMP_IF_ANY_BIT, 1, 0, _CLONE_THREAD)]),
        (_TGKILL, [_load(_FIRST), _Filter(_JUMP_IF_EQUAL, 1, 0, process)]),
        (
            _PRLIMIT64,
            [
                _load(_FIRST),
                _Filter(_JUMP_IF_EQUAL, 2, 0, 0),
                _Filter(_JUMP_IF_EQUAL, 1, 0, process),
            ],
        ),
    ):
        yield from _block(numbers[column], [*check, _return(_FORBID), _return(_ALLOW)])
    for numbers, commands in _FORBIDDEN_COMMANDS.values():
        last = len(commands)
        checks = [
            _Filter(_JUMP_IF_EQUAL, last - at, 0, command) for at, command in enumerate(commands)
        ]
        block = [_load(_SECOND), *checks, _return(_ALLOW), _return(_FORBID)]
        yield from _block(numbers[column], block)
    yield _return(_ALLOW)


def _load(offset: int) -> _Filter:
    return _Filter(_LOAD_WORD, 0, 0, offset)


def _return(action: int) -> _Filter:
    return _Filter(_RETURN, 0, 0, action)


def _block(number: int, block: list[_Filter]) -> Iterator[_Filter]:
    """Yield ``block``, which returns, for the call with a number."""
    yield _Filter(_JUMP_IF_EQUAL, 0, len(block), number)
    yield from block
