"""Details of a process that capture reported long before the process sends."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import textwrap
from typing import IO, TYPE_CHECKING

import pytest

from ocsf_nft.attribution import process_snapshots
from tests.kernel import scripted
from tests.kernel.scripted import PYTHON
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Process
    from tests.kernel.watching import Watched

pytestmark = pytest.mark.kernel

#: A process that sends after each line that it reads.
_SENDS = """
    print_pid()
    for _ in sys.stdin:
        with refused: udp().sendto(b"x", TO4)
"""
#: The same, by a child that runs the same program.
_FORKED_SENDS = "if os.fork(): os.wait(); sys.exit()\n" + textwrap.dedent(_SENDS)
_ADOPTER = """
adopted = signal.sigwaitinfo([signal.SIGUSR1]).si_pid
with refused: tcp().connect(TO4)
os.kill(adopted, signal.SIGUSR1)
os.wait()
"""
_ADOPTED = """
print_pid()
for _ in sys.stdin:
    os.kill(os.getppid(), signal.SIGUSR1)
    signal.sigwait([signal.SIGUSR1])  # the other one has connected
    with refused: udp().sendto(b"x", TO4)
"""
#: A process is adopted by another one with as many execs and the same program.
_ADOPTS = f"""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    assert libc.prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
    def run(program, name):
        os.execv(sys.executable, [sys.executable, "-I", "-c", program, name])
    if not os.fork():
        if not os.fork():
            run({scripted.START + _ADOPTED!r}, "adopted")
        os._exit(0)
    os.wait()
    run({scripted.START + _ADOPTER!r}, "adopter")
"""
#: Maximum number of processes in the store, and of other programs that are run. The sender and all
#: its ancestors fit into the store.
_STORED, _OTHERS = 20, 60
#: Number of programs that fill the buffer with their details.
_FULL = 600


class Sender:
    """Running process in the sandbox."""

    def __init__(self, pid: int, orders: IO[str]) -> None:
        self.pid = pid
        self._orders = orders

    def end(self) -> None:
        self._orders.close()

    async def send(self, watched: Watched) -> Process:
        """Send a packet; return the process that its event names."""
        number = len(watched.of(17))
        print(file=self._orders, flush=True)
        process = (await watched.until(number + 1, protocol=17))[-1].process
        assert process is not None
        assert process.pid == self.pid
        return process


@contextlib.contextmanager
def started(lab: Lab, program: str = _SENDS) -> Iterator[Sender]:
    """Start a program in the sandbox that prints a pid and then reads lines."""
    text = f"{scripted.START}\n{textwrap.dedent(program)}"
    with lab.sandbox_namespace.call(
        lambda: subprocess.Popen(
            [*scripted.BY, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Sender(int(process.stdout.readline()), process.stdin)


async def test_details_are_known_after_thousands_of_other_programs(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that runs program after program must not hide the details of all others."""
    monkeypatch.setattr(process_snapshots, "_MOST_IMAGES", _STORED)
    fence(lab, state, monkeypatch)
    others = f"for number in range({_OTHERS}): os.spawnv(os.P_WAIT, '/usr/bin/true', ['true'])"
    async with watching(lab) as watched:
        with started(lab) as sender:
            await asyncio.to_thread(scripted.run, lab, others)
            await watched.chain.read_events()
            process = await sender.send(watched)
    assert process.path == PYTHON
    assert process.ancestors[0].path is not None


async def test_details_are_known_after_there_was_no_room_for_them(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer of the kernel is full of other programs when the sender begins."""
    fence(lab, state, monkeypatch)
    # The last ones are short: no room is left.
    others = f"""
        for number in range({_FULL}):
            argument = "x" * 999 if number < {_FULL} - 50 else "x"
            os.spawnv(os.P_WAIT, "/usr/bin/true", ["true", argument])
    """
    async with watching(lab) as watched:
        # The event loop does not read meanwhile.
        scripted.run(lab, others)
        with started(lab) as sender:
            await watched.chain.read_events()
            assert watched.chain.dropped
            process = await sender.send(watched)
    assert process.path == PYTHON
    assert process.ancestors[0].path is not None


async def test_child_of_a_process_from_before_the_capture_has_arguments(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence(lab, state, monkeypatch)
    with started(lab, _FORKED_SENDS) as sender:
        async with watching(lab) as watched:
            process = await sender.send(watched)
        sender.end()
    assert process.cmd_line is not None
    assert process.cmd_line.startswith(f"{PYTHON} -I -c")


async def test_adopted_process_has_its_own_arguments(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capture begins after both were started, so it has not seen the fork of the sender."""
    fence(lab, state, monkeypatch)
    with started(lab, _ADOPTS) as sender:
        async with watching(lab) as watched:
            process = await sender.send(watched)
            (adopter,) = watched.of(6)
        sender.end()
    assert adopter.process is not None
    assert (adopter.process.cmd_line or "").endswith("adopter")
    assert (process.cmd_line or "").endswith("adopted")
