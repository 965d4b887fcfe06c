"""Calls that the service and its delivery process may and may not make, made with the filters."""

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
    assert not seccomp._NEVER_NEEDED.keys() & seccomp._NEVER_NEEDED_FOR_DELIVERY.keys()
    named = {**seccomp._NEVER_NEEDED, **seccomp._NEVER_NEEDED_FOR_DELIVERY} | {
        "seccomp": seccomp._SECCOMP, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3,
        "tgkill": seccomp._TGKILL, "prlimit64": seccomp._PRLIMIT64,
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
    assert not seccomp.forbid_unneeded_calls(loads_bpf=False)


#: Process with the filter of a service: it makes each forbidden call, without valid arguments, in
#: itself and in a child process, and then runs programs as a service does.
_SERVICE = """
import ctypes, errno, fcntl, os, signal, socket, subprocess, sys, termios
from ocsf_nft import privileges, seccomp

column = seccomp._MACHINES[os.uname().machine].column
libc = ctypes.CDLL(None, use_errno=True)
privileges.keep_only(frozenset(privileges.Capability))
loads_bpf = sys.argv[1] == "True"
assert seccomp.forbid_unneeded_calls(loads_bpf=loads_bpf)


def errors(calls):
    found = set()
    for number, first in calls:
        libc.syscall(number, first, -1, -1, -1, -1, -1)
        found.add(errno.errorcode[ctypes.get_errno()])
    return found


never = [(each[column], -1) for each in seccomp._NEVER_NEEDED.values() if each[column] is not None]
loads = [(seccomp._BPF[column], each) for each in seccomp._BPF_LOADS]
print(errors(never), errors(loads))
# A call of the interface x32: getpid.
if os.uname().machine == "x86_64":
    assert errors([(0x40000000 + 39, 0)]) == {"EPERM"}
# BPF_MAP_LOOKUP_ELEM, which a capture needs.
assert "EPERM" not in errors([(seccomp._BPF[column], 1)])
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
except PermissionError:
    print("no input for a terminal")
subprocess.run(["nft", "--version"], check=True, stdout=subprocess.DEVNULL)
child = subprocess.Popen([sys.executable, "-c", "import ctypes, os;"
    "print(ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0), flush=True);"
    "os.kill(os.getppid(), 0); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip())
child.send_signal(signal.SIGTERM)
print(child.wait())
libc.unshare(0x40000000)
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
"""


@pytest.mark.kernel
@pytest.mark.parametrize("loads_bpf", [False, True])
def test_service_and_its_children_can_not_make_the_calls_that_they_never_need(
    loads_bpf: bool,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SERVICE, str(loads_bpf)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    never, *more = done.stdout.splitlines()
    assert never.startswith("{'EPERM'} ")
    assert (never == "{'EPERM'} {'EPERM'}") is not loads_bpf
    assert more == ["no input for a terminal", "-1", "-15"]


def test_filter_is_applied_by_prctl_where_the_newer_call_is_forbidden() -> None:
    # The first filter, of a container engine for example, forbids seccomp(2).
    program = _FILTERED.replace(
        "assert seccomp.forbid",
        "assert seccomp._apply(lambda each: seccomp._block(seccomp._SECCOMP[each.column],"
        " [seccomp._return(seccomp._FORBID)]))\nassert seccomp.forbid",
    ).replace("CALL", "os.kill(parent, 0)")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "forbidden"
