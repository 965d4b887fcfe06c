"""Attribution by capture if a packet is not logged and another process imitates it.

The fence refuses most packets of a flow without a log record, and the capture reports them too.
None of them may match the record of a packet that is reported later, or not at all.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.fence.state import StateDirectory
from tests.kernel import attempts, scripted
from tests.kernel.watching import SHORT_DELAY, fence, watching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Attribution
    from tests.kernel.watching import Watched

pytestmark = pytest.mark.kernel

_UDP, _ICMP, _ICMPV6 = 17, 1, 58
#: Data of the second process, in a packet longer than any other one.
_MARK = "exfil by another" * 2
_LONGEST_PLAIN = 48
#: The longest delay of a process for which the test is valid.
_LATE_SECONDS = 0.05
#: The longest time until the logged packets of the first process are attributed. After that time,
#: the second process sends.
_ATTRIBUTED_SECONDS = 0.1
#: A busy machine may need some attempts until a test is valid.
_TRIES_SECONDS = 300
_WITH = f"""
import mmap, select
MARK = {_MARK!r}.encode()
"""
_WITH += """
PING4, PING6 = struct.pack("!BBHHH", 8, 0, 0, 7, 1), struct.pack("!BBHHH", 128, 0, 0, 7, 1)
def be(number):
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
# Shared by both: the time when the first four were sent, and the longest delay of each.
shared_times = memoryview(mmap.mmap(-1, 4096)).cast("d")
def was_late(seconds):
    shared_times[WHO] = max(shared_times[WHO], seconds)
def at(when):
    time.sleep(max(0.0, when - time.monotonic()))
    was_late(time.monotonic() - when)
def four(sock, data, to=TO4):
    at(START)
    for _ in range(4): send(sock, data, to)
    shared_times[0] = time.monotonic()
    was_late(shared_times[0] - START)
def after_four(seconds):
    while not shared_times[0]:
        assert time.monotonic() < START + 5
        time.sleep(0.001)
    at(shared_times[0] + seconds)
def sharing():
    sock = udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock
def shared():
    sock = sharing()
    sock.bind(("", 5555))
    return sock
def send(sock, data, to=TO4):
    with refused: sock.sendto(data, to)
def unlogged(seconds, sock, data, to=TO4, times=1):
    # Later, one of them would be logged.
    after_four(seconds)
    for _ in range(times): send(sock, data, to)
    was_late(time.monotonic() - shared_times[0] - seconds)
def five(sock, data, to=TO4):
    # Four are logged, the fifth is not.
    four(sock, data, to)
    unlogged(0.9, sock, data, to)
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
"""
#: Through a user's own socket until it is no longer reported, then through another user's.
_BY_ANOTHER_USERS = (
    _UDP,
    "be(1000); five(shared(), b'')",
    """
    if not os.fork():
        be(1000)
        passed = shared()
        socket.send_fds(there, [b"x"], [passed.fileno()])
        os._exit(0)
    os.wait()
    (given,) = socket.recv_fds(here, 1, 1)[1]
    be(1001)
    own = shared()
    unlogged(0.6, own, b"", times=20)
    after_four(1.05)
    send(socket.socket(fileno=given), MARK)
    """,
)
#: For some time no event of the process is reported, and for longer no event of its flow.
_AFTER_A_FLOOD = (
    _UDP,
    """
    be(1000)
    own = shared()
    four(own, b"")
    after_four(0.8)
    send(udp(), b"", (TO4[0], 99))  # its record shows that no more events of the others will come
    unlogged(0.9, own, b"")
    """,
    """
    be(1000)
    own = shared()
    after_four(0.12)
    for _ in range(2001): send(udp(), b"", ("203.0.113.9", 443))
    flooded = time.monotonic()
    was_late(flooded - shared_times[0] - 0.45)
    at(flooded + 0.45)
    for _ in range(10): send(own, b"")
    was_late(time.monotonic() - flooded - 0.45)
    at(max(flooded + 0.75, shared_times[0] + 1.02))
    send(own, MARK)
    """,
)
#: The waiting process is woken by the fence's answer before the packet is dropped.
_HELD_UP = """
    be(1000)
    {opened}
    copies = [os.dup(own.fileno()) for _ in range(400)]
    waiting = [select.epoll() for _ in range(400)]
    for each in waiting:
        for copy in copies: each.register(copy, select.EPOLLPRI)
    after_four(1.05)
    {sent}
"""
_HELD_UP_UDP = (
    _UDP,
    "be(1000); five(shared(), b'')",
    _HELD_UP.format(
        opened="own = sharing(); own.setsockopt(0, 11, 1)",  # IP_RECVERR
        # Later, the socket would get the errors of the other process's packets.
        sent="own.bind(('', 5555)); own.connect(TO4)\n    with refused: own.send(MARK)",
    ),
)
_PING = "socket.socket(2, socket.SOCK_DGRAM, 1)"
_HELD_UP_PING = (
    _ICMP,
    f"be(1000); five({_PING}, PING4)",
    _HELD_UP.format(
        opened=f"own = {_PING}; own.setsockopt(0, 11, 1)", sent="send(own, PING4 + MARK)"
    ),
)
#: A fragment header with an offset, behind another one.
_IN_LATE_FRAGMENTS = (
    _ICMPV6,
    "five(socket.socket(10, socket.SOCK_DGRAM, 58), PING6, TO6)",
    """
    late = bytes([44, 0, 0, 8, 0, 0, 0, 7]) + bytes([58, 0, 0, 0, 0, 0, 0, 0]) + MARK
    addresses = socket.inet_pton(10, "fd00:200::2") + socket.inet_pton(10, TO6[0])
    after_four(1.05)
    by_hand = socket.socket(10, socket.SOCK_RAW, 255)
    send(by_hand, struct.pack("!IHBB", 6 << 28, len(late), 44, 64) + addresses + late, (TO6[0], 0))
    """,
)
_ACTIONS = {
    "by another user's socket": _BY_ANOTHER_USERS,
    "after a flood": _AFTER_A_FLOOD,
    "held up": _HELD_UP_UDP,
    "held up, ping": _HELD_UP_PING,
    "in late fragments": _IN_LATE_FRAGMENTS,
}


@pytest.mark.parametrize(("protocol", "first", "second"), _ACTIONS.values(), ids=_ACTIONS)
async def test_unlogged_packet_does_not_match_the_record_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, first: str, second: str
) -> None:
    program = "\n".join(
        [
            _WITH,
            # Their delays are part of the test: on a busy machine they must not wait for others.
            "with contextlib.suppress(PermissionError):",
            "    os.setpriority(os.PRIO_PROCESS, 0, -20)",
            "START = time.monotonic() + 1.5",
            "one = os.fork()",
            "if not one:",
            "    WHO = 1",
            textwrap.indent(textwrap.dedent(first), "    "),
            "    time.sleep(0.5)",
            "    os._exit(0)",
            "other = os.fork()",
            "if not other:",
            "    WHO = 2",
            textwrap.indent(textwrap.dedent(second), "    "),
            "    os._exit(0)",
            "os.wait(), os.wait()",
            "times = max(shared_times[1:3]), shared_times[0]",
            "print(one, other, *(round(each * 1e6) for each in times))",
        ]
    )
    for number in _tries():
        with laboratory.throwaway() as lab:
            fence(lab, StateDirectory(tmp_path / str(number)), monkeypatch, is_generous=False)
            lab.sandbox_namespace.call(attempts.allow_ping)
            if await _is_seen_through(lab, program, protocol):
                return


async def _is_seen_through(lab: Lab, program: str, protocol: int) -> bool:
    """Return False if a process or the test was too late for the test to be valid."""
    async with watching(lab, event_delay=_ATTRIBUTED_SECONDS) as watched:
        running = asyncio.create_task(asyncio.to_thread(scripted.run, lab, program))
        await watched.wait_for(lambda: len(_of(watched, protocol, is_marked=False)) >= 4)
        attributed = time.monotonic()
        watched.set_event_delay(SHORT_DELAY)
        one, other, late_us, sent_us = await running
        if late_us > _LATE_SECONDS * 1e6 or attributed > sent_us / 1e6 + _ATTRIBUTED_SECONDS:
            return False
        await watched.wait_for(lambda: bool(_of(watched, protocol, is_marked=True)))
    (by,) = _of(watched, protocol, is_marked=True)
    assert by.process is None or by.process.pid == other, (one, other)
    named = [each.process for each in _of(watched, protocol, is_marked=False)]
    assert [each and each.pid for each in named[:4]] == [one] * 4
    return True


#: Four packets are logged, twelve are not, and after a second one more is.
_EXECS = """
    s = udp()
    s.setsockopt(0, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: no numbers, the same bytes
    s.connect(TO4)
    def send():
        with refused: s.send(b"x")
        s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    before = time.monotonic()
    send()
    begun = time.monotonic()
    for _ in range(3): send()
    time.sleep(max(0.0, begun + 0.8 - time.monotonic()))
    for _ in range(12): send()
    print(round((time.monotonic() - before) * 1e6), flush=True)
    os.dup2(s.fileno(), 9)
    os.execv("/usr/bin/bash", ["bash", "-c", "sleep 0.25; printf x >&9; exit 0"])
"""


async def test_packet_after_an_exec_is_not_attributed_to_the_program_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program before sent the same so often that the kernel did not report it any more."""
    for number in _tries():
        with laboratory.throwaway() as lab:
            fence(lab, StateDirectory(tmp_path / str(number)), monkeypatch, is_generous=False)
            async with watching(lab) as watched:
                running = asyncio.create_task(asyncio.to_thread(scripted.run, lab, _EXECS))
                await watched.until(4, protocol=_UDP)
                watched.set_event_delay(SHORT_DELAY)
                (late_us,) = await running
                if late_us > 950_000:  # one of the twelve may have been logged
                    continue
                found = await watched.until(5, protocol=_UDP)
        paths = [by.process and by.process.path for by in found]
        assert paths[:4] == [scripted.PYTHON] * 4
        assert paths[4] in {None, "/usr/bin/bash"}
        return


def _tries() -> Iterator[int]:
    """Count the attempts; fail the test if a busy machine made none of them valid."""
    end, number = time.monotonic() + _TRIES_SECONDS, 0
    while time.monotonic() < end:
        yield number
        number += 1
    pytest.fail("this machine is too slow for the test")


def _of(watched: Watched, protocol: int, *, is_marked: bool) -> list[Attribution]:
    return [
        by
        for record, by in watched.found
        if record.protocol == protocol
        and record.uid is not None
        and is_marked == ((record.length or 0) > _LONGEST_PLAIN)
    ]
