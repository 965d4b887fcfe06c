"""Filters of system calls (seccomp): for the service, and for the process that delivers events.

A process inherits its parent's filters, so the delivery process has both. A filter is a program of
classic BPF; its input is ``struct seccomp_data`` (seccomp(2)). The constants are from
``include/uapi/linux/{seccomp,filter,bpf_common,bpf,audit,sched,fcntl}.h``,
``asm-generic/{ioctls,sockios}.h`` and ``unistd.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SET_MODE_FILTER: Final = 1
#: Without it, older kernels slow down each process with a filter (Linux 4.17 to 5.15).
_SPEC_ALLOW: Final = 1 << 2
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
#: Number of seccomp(2).
_SECCOMP: Final = (317, 277)
#: Reason if there is no filter.
UNKNOWN: Final = "no filter is known for this machine, or its kernel has none"
_Calls: TypeAlias = "Mapping[str, tuple[int, int | None]]"
#: Calls that the service and its child processes never need; numbers on x86-64 and on arm64, None
#: if there is no such call. They change or read other processes, or change the system.
_NEVER_NEEDED: Final[_Calls] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116), "vhangup": (153, 58), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
}  # fmt: skip
#: More calls that the delivery process never needs. No process may be made: it would outlive this
#: one, and keep its locks.
_NEVER_NEEDED_FOR_DELIVERY: Final[_Calls] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "bpf": (321, 280), "setns": (308, 268), "unshare": (272, 97),
}  # fmt: skip
#: Calls of bpf(2) that bring code or maps into the kernel: BPF_MAP_CREATE, BPF_PROG_LOAD,
#: BPF_RAW_TRACEPOINT_OPEN, BPF_BTF_LOAD.
_BPF: Final = (321, 280)
_BPF_LOADS: Final = (0, 5, 17, 18)
#: Only threads may be made.
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_CLONE_THREAD: Final = 0x00010000
#: Signal to a thread, and limits of a process: allowed for this process only.
_TGKILL: Final = (234, 131)
_PRLIMIT64: Final = (302, 261)
#: Calls of the delivery process with forbidden second arguments. With F_SETOWN, F_SETSIG,
#: F_SETOWN_EX, FIOSETOWN or SIOCSPGRP, the kernel sends a signal to another process; TIOCSTI types
#: into a terminal.
_TIOCSTI: Final = 0x5412
_IOCTL: Final = (16, 29)
_FORBIDDEN_COMMANDS: Final = {
    "fcntl": ((72, 25), (8, 10, 15)),
    "ioctl": (_IOCTL, (0x8901, 0x8902, _TIOCSTI)),
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


def forbid_unneeded_calls(*, loads_bpf: bool) -> bool:
    """Forbid calls that a service and its child processes never need, for good.

    These calls change or read other processes, or change the system. They fail with EPERM, in this
    thread, and in all threads and processes that it starts. Without ``loads_bpf``, calls that load
    BPF programs are among them. Return and raise as :func:`forbid_privileged_calls`.
    """
    return _apply(lambda machine: _service_blocks(machine.column, loads_bpf=loads_bpf))


def forbid_privileged_calls() -> bool:
    """Forbid calls that a process which only delivers events never needs, for good.

    These calls start programs or processes, change or read other processes, send them signals, or
    change the system. They fail with EPERM, in this thread and in all threads that it starts.
    Return False on a machine for which no filter is known, and if the kernel has no filters. The
    process must have ``no_new_privs``. Raises UnsupportedError if the kernel refuses the filter.
    """
    return _apply(lambda machine: _delivery_blocks(machine.column, os.getpid()))


def _apply(blocks: Callable[[_Machine], Iterator[_Filter]]) -> bool:
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 1 << 32:  # a 32-bit program makes other calls
        return False
    filters = [*_beginning(machine), *blocks(machine), _return(_ALLOW)]
    program = _Program(len(filters), (_Filter * len(filters))(*filters))
    libc = ctypes.CDLL(None, use_errno=True)
    number, address = _SECCOMP[machine.column], ctypes.byref(program)
    if libc.syscall(number, _SET_MODE_FILTER, _SPEC_ALLOW, address) == 0:
        return True
    # The filter of a container engine or of a unit may forbid the newer call.
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0) == 0:
        return True
    if (error := ctypes.get_errno()) == errno.EINVAL:  # the kernel was built without filters
        return False
    raise UnsupportedError(f"the filter of system calls was refused: {os.strerror(error)}")


def _beginning(machine: _Machine) -> Iterator[_Filter]:
    """Yield the begin of a program: it refuses calls of other architectures, and of x32.

    A program ends at the first return; each later block jumps over itself, or returns.
    """
    yield _load(_ARCHITECTURE)
    yield _Filter(_JUMP_IF_EQUAL, 1, 0, machine.architecture)
    yield _return(_FORBID)
    yield _load(_NUMBER)
    yield _Filter(_JUMP_IF_AT_LEAST, 0, 1, _X32)
    yield _return(_FORBID)


def _service_blocks(column: int, *, loads_bpf: bool) -> Iterator[_Filter]:
    yield from _forbidden(_NEVER_NEEDED, column)
    if not loads_bpf:
        yield from _forbidden_values(_BPF[column], _FIRST, _BPF_LOADS)
    yield from _forbidden_values(_IOCTL[column], _SECOND, (_TIOCSTI,))


def _delivery_blocks(column: int, process: int) -> Iterator[_Filter]:
    yield from _forbidden(_NEVER_NEEDED, column)
    yield from _forbidden(_NEVER_NEEDED_FOR_DELIVERY, column)
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
        yield from _forbidden_values(numbers[column], _SECOND, commands)


def _forbidden(calls: _Calls, column: int) -> Iterator[_Filter]:
    for numbers in calls.values():
        if (number := numbers[column]) is not None:
            yield from _block(number, [_return(_FORBID)])


def _forbidden_values(number: int, argument: int, values: Sequence[int]) -> Iterator[_Filter]:
    """Yield the block of a call that must not have one of ``values`` as an argument."""
    last = len(values)
    checks = [_Filter(_JUMP_IF_EQUAL, last - at, 0, value) for at, value in enumerate(values)]
    yield from _block(number, [_load(argument), *checks, _return(_ALLOW), _return(_FORBID)])


def _load(offset: int) -> _Filter:
    return _Filter(_LOAD_WORD, 0, 0, offset)


def _return(action: int) -> _Filter:
    return _Filter(_RETURN, 0, 0, action)


def _block(number: int, block: list[_Filter]) -> Iterator[_Filter]:
    """Yield ``block``, which returns, for the call with a number."""
    yield _Filter(_JUMP_IF_EQUAL, 0, len(block), number)
    yield from block
