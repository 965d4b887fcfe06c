"""Calls that the delivery process may and may not make, made by a process with the filter."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import seccomp

if TYPE_CHECKING:
    from pathlib import Path

_FILTERED = """
import concurrent.futures, ctypes, fcntl, os, resource, signal, socket, subprocess, sys
import termios, threading
from ocsf_nft import privileges, seccomp

parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
privileges.keep_only(frozenset())
assert seccomp.forbid_privileged_calls()


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")


def clone(flags):
    checked(libc.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], flags, 0, 0, 0, 0))


pair = socket.socketpair()
try:
    CALL
except PermissionError:
    print("forbidden")
else:
    print("allowed")
"""
_NEWUSER = 0x10000000


def _outcome(call: str) -> str:
    program = _FILTERED.replace("CALL", call)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "call",
    [
        "os.kill(parent, 0)",
        "signal.pidfd_send_signal(os.pidfd_open(parent), 0)",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['true'])",
        "os.fork()",
        f"clone({_NEWUSER})",
        "clone(17)",  # SIGCHLD, as fork does
        "resource.prlimit(parent, resource.RLIMIT_CORE)",
        "os.setpriority(os.PRIO_PROCESS, parent, 0)",
        "os.sched_setaffinity(parent, os.sched_getaffinity(parent))",
        "fcntl.fcntl(pair[0], fcntl.F_SETOWN, parent)",
        "fcntl.fcntl(pair[0], fcntl.F_SETSIG, signal.SIGKILL)",
        "fcntl.ioctl(pair[0], 0x8901, parent.to_bytes(4, sys.byteorder))",
        "fcntl.ioctl(pair[0], 0x8902, parent.to_bytes(4, sys.byteorder))",
        "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
        "checked(libc.unshare(0x10000000))",
        "checked(libc.ptrace(16, parent, 0, 0))",
    ],
)
def test_process_can_neither_reach_another_one_nor_make_one(call: str) -> None:
    assert _outcome(call) == "forbidden"


@pytest.mark.parametrize(
    "call",
    [
        "thread = threading.Thread(target=print, args=('',)); thread.start(); thread.join()",
        "signal.pthread_kill(threading.get_ident(), 0)",
        "resource.prlimit(0, resource.RLIMIT_CORE)",
        "resource.prlimit(os.getpid(), resource.RLIMIT_CORE)",
        "fcntl.fcntl(pair[0], fcntl.F_SETFD, 1)",
        "pair[0].setblocking(False)",
        "socket.getaddrinfo('localhost', 80)",
        "os.sched_getaffinity(0)",
    ],
)
def test_process_can_do_what_a_sink_needs(call: str) -> None:
    assert _outcome(call) == "allowed"


def test_filter_is_inherited_by_threads() -> None:
    call = "concurrent.futures.ThreadPoolExecutor(1).submit(os.kill, parent, 0).result()"
    assert _outcome(call) == "forbidden"


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", "asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_numbers_of_calls_are_the_kernel_s(tmp_path: Path, machine: str, header: str) -> None:
    column = seccomp._MACHINES[machine].column
    named = seccomp._FORBIDDEN | {
        "clone": seccomp._CLONE, "clone3": seccomp._CLONE3, "tgkill": seccomp._TGKILL,
        "prlimit64": seccomp._PRLIMIT64,
    } | {name: numbers for name, (numbers, _) in seccomp._FORBIDDEN_COMMANDS.items()}  # fmt: skip
    prints = "".join(
        f'#ifdef __NR_{name}\nprintf("{name} %d\\n", __NR_{name});\n#endif\n' for name in named
    )
    source = (
        f"#define __ARCH_WANT_SYS_CLONE3\n#include <{header}>\n#include <stdio.h>\n"
        f"int main(void) {{\n{prints}return 0;\n}}\n"
    )
    program = tmp_path / "numbers"
    subprocess.run(["cc", "-x", "c", "-o", str(program), "-"], input=source, text=True, check=True)
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in map(str.split, shown.splitlines())}
    assert {name: numbers[column] for name, numbers in named.items()} == {
        name: found.get(name) for name in named
    }


def test_machine_without_a_known_filter_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not seccomp.forbid_privileged_calls()
