"""Restriction of the files that this process can open, by the kernel's Landlock.

A rule allows access to a file, or to everything below a directory. This thread, and those that it
starts, can open no other files, also as root. Open descriptors stay usable. The constants are from
``include/uapi/linux/landlock.h``, the numbers of the calls from ``asm-generic/unistd.h``; they are
equal on all machines.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH
_BIND_TCP: Final = 1 << 0
#: Connections to abstract Unix sockets, and signals, of processes outside.
_SCOPES: Final = 1 << 0 | 1 << 1


class Access(enum.IntFlag):
    """Rights over files (LANDLOCK_ACCESS_FS_…), and the two sets that rules use."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15

    READ = READ_FILE | READ_DIR
    WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE


#: Rights that a rule for a single file may have.
_OF_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
#: Number of rights over files that each version of the interface (ABI) knows; later ones as 5.
_KNOWN_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK_ABI: Final = 4
_SCOPE_ABI: Final = 6


@dataclass(frozen=True, slots=True)
class Rule:
    """Allowed access to a file, or to everything below a directory."""

    path: Path
    access: Access


class _Ruleset(ctypes.Structure):
    """Attributes of a ruleset: what is forbidden unless a rule allows it."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("files", "network", "scoped"))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


class Calls:
    """Calls of the kernel; tests replace them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def create_ruleset(self, attributes: object, size: int, flags: int) -> int:
        """Return a descriptor, or a version; -1 with errno on failure."""
        return int(self._libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), flags))

    def add_rule(self, ruleset: int, attributes: object) -> int:
        """Return 0, or -1 with errno."""
        return int(self._libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, attributes, 0))

    def restrict_self(self, ruleset: int) -> int:
        """Return 0, or -1 with errno."""
        return int(self._libc.syscall(_RESTRICT_SELF, ruleset, 0))


def abi(calls: Calls | None = None) -> int:
    """Return the version of the kernel's interface; 0 if it has no Landlock, or does not use it."""
    return max(0, (calls or Calls()).create_ruleset(None, 0, _VERSION))


def restrict(rules: Iterable[Rule], calls: Calls | None = None) -> int:
    """Allow only the access of ``rules`` from now on, for good; return the version that is used.

    Return 0 if the kernel has no Landlock; then nothing is restricted. A path that can't be opened,
    such as a missing one, is ignored: no access to it is allowed.
    Also forbid TCP servers (version 4), and signals and connections to abstract Unix sockets of
    processes without this restriction (version 6). The process must have ``no_new_privs``, and only
    this thread. Raises UnsupportedError if the kernel refuses.
    """
    calls = calls or Calls()
    version = abi(calls)
    if version == 0:
        return 0
    known = Access((1 << _KNOWN_RIGHTS[min(version, max(_KNOWN_RIGHTS))]) - 1)
    attributes = _Ruleset(
        int(known),
        _BIND_TCP if version >= _NETWORK_ABI else 0,
        _SCOPES if version >= _SCOPE_ABI else 0,
    )
    size = 24 if version >= _SCOPE_ABI else 16 if version >= _NETWORK_ABI else 8
    ruleset = _checked(calls.create_ruleset(ctypes.byref(attributes), size, 0))
    try:
        for rule in rules:
            _add(calls, ruleset, rule, known)
        _checked(calls.restrict_self(ruleset))
    finally:
        os.close(ruleset)
    return version


def _add(calls: Calls, ruleset: int, rule: Rule, known: Access) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):  # ELOOP, ESTALE, EIO and others; a path with NUL
        return
    try:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        access = rule.access & known & (~Access(0) if is_directory else _OF_FILES)
        attributes = _PathBeneath(int(access), descriptor)
        result = calls.add_rule(ruleset, ctypes.byref(attributes))
        # A pipe or a socket: the kernel does not restrict it.
        if result != 0 and ctypes.get_errno() != errno.EBADFD:
            _checked(result)
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise UnsupportedError(f"the restriction of files (Landlock) was refused: {reason}")
    return result
