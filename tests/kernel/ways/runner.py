"""Program that runs attacks: ``python -m tests.kernel.ways.runner``, with a plan on its input.

The plan is one JSON object. The program writes one JSON line for each attack when it has ended. It
has one thread, because only such a process can enter a user namespace. Each attack is a process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.kernel.ways import tidy, tools
from tests.kernel.ways.variant import Seat
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.ways.variant import Attacker

#: Groups at the same time, most of which pause, and attacks at the same time.
_GROUPS: Final = 100
_ATTACKS: Final = 3
#: The attacks leave the processor to the service, which other programs would not.
_NICE: Final = 5
_SECONDS: Final = 30
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h
_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13
_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_SET_DUMPABLE = 24, 8, 47, 4
_LAST_CAPABILITY: Final = 63
_USER: Final = 1000
_libc = ctypes.CDLL(None, use_errno=True)
#: Pipe with one byte for each attack that may begin.
_tokens: Final = os.pipe()


def main() -> None:
    """Run the groups of the plan at the same time, and the attacks of each one after the other."""
    plan: dict[str, Any] = json.load(sys.stdin)
    magic = bytes.fromhex(plan["magic"])
    running: set[int] = set()
    os.nice(_NICE)
    os.write(_tokens[1], bytes(_ATTACKS))
    for group in plan["groups"]:
        if len(running) >= _GROUPS:
            running.discard(os.wait()[0])
        running.add(_forked(partial(_run_group, group, magic)))
    while running:
        running.discard(os.wait()[0])


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def _run_group(group: dict[str, Any], magic: bytes) -> None:
    for job in group["jobs"]:
        seat = Seat(**group["seat"], magic=magic, job=job["job"])
        os.read(_tokens[0], 1)
        begun = time.time()
        reader, writer = os.pipe()
        pid = _forked(partial(_attack, job, seat, writer))
        os.close(writer)
        with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
            error = pipe.read().decode()
        _, status = os.waitpid(pid, 0)
        os.write(_tokens[1], b"x")
        if os.WIFSIGNALED(status):
            error = f"ended by signal {os.WTERMSIG(status)}"
        result = {"job": job["job"], "begun": begun, "ended": time.time(), "error": error}
        os.write(1, (json.dumps(result) + "\n").encode())
        if job is not group["jobs"][-1]:
            # A report about this attack has to come before the next one begins.
            time.sleep(group["pause"])
            if VARIANTS[job["variant"]].attacker in {"admin", "cap-add"}:
                os.waitpid(_forked(partial(_tidy, seat)), 0)


def _tidy(seat: Seat) -> None:
    with open(f"/run/netns/{seat.namespace}", "rb") as namespace:  # noqa: PTH123 - a descriptor
        _check(_libc.setns(namespace.fileno(), _CLONE_NEWNET))
    tidy.tidy(seat)


def _attack(job: dict[str, Any], seat: Seat, writer: int) -> None:
    """Make the attempt as the attacker; write the error if there is one."""
    signal.alarm(_SECONDS)
    os.setpgid(0, 0)
    variant = VARIANTS[job["variant"]]
    # Only this descriptor tells when the attack has ended, so no program may inherit it.
    fcntl.fcntl(writer, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        _enter(seat, variant.attacker)
        variant.run(seat)
    except Exception as error:  # noqa: BLE001 - the matrix reports it
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:2000])


def _enter(seat: Seat, attacker: Attacker) -> None:
    """Enter the seat's namespace, and take the attacker's user and capabilities."""
    descriptor = os.open(f"/run/netns/{seat.namespace}", os.O_RDONLY | os.O_CLOEXEC)
    if attacker == "admin":
        owner = fcntl.ioctl(descriptor, _NS_GET_USERNS)
        _check(_libc.setns(descriptor, _CLONE_NEWNET))
        tools.open_tun()
        _check(_libc.setns(owner, _CLONE_NEWUSER))
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
        return
    _check(_libc.setns(descriptor, _CLONE_NEWNET))
    tools.open_tun()
    capabilities = {
        "unprivileged": (),
        "raw": (_CAP_NET_RAW,),
        "cap-add": (_CAP_NET_ADMIN, _CAP_NET_RAW),
    }[attacker]
    _keep_only(capabilities, 0 if attacker == "cap-add" else _USER)


def _keep_only(capabilities: tuple[int, ...], uid: int) -> None:
    """Become the user, with these capabilities, also in the programs that it starts."""
    for number in range(_LAST_CAPABILITY):
        if number not in capabilities:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    mask = sum(1 << number for number in capabilities)
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)))
    for number in capabilities:
        _check(_libc.prctl(_PR_CAP_AMBIENT, 2, number, 0, 0))
    # A change of the user closes /proc/PID to the process's own children.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
