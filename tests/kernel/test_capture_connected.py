"""Packets of UDP where calls are told: what is sent by a connected socket is nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import capture
from ocsf_nft.attribution.ladder import Ladder
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import scripted
from tests.kernel.watching import SANDBOX, fence, watching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Attribution

pytestmark = pytest.mark.kernel

#: A socket that is connected; each line that is read has it do something.
_CONNECTED = """
    sock = udp()
    sock.connect(TO4)
    print(os.getpid(), sock.getsockname()[1], flush=True)
    def send():
        with refused: sock.send(b"mine")
    def disconnect(): assert libc.connect(sock.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
    for line in sys.stdin:
        globals()[line.strip()]()
        print("done", flush=True)
"""
#: A sender whose socket is not connected, from a port.
_SENDS = """
    say()
    sock = udp()
    sock.bind(("", {port}))
    with refused: sock.sendto(b"another", TO4)
"""


class Holder:
    """A process of the sandbox that has a connected socket."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid, self.port = map(int, self._line().split())

    def do(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._line() == "done\n"

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=20) == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def holding(lab: Lab) -> Iterator[Holder]:
    program = f"{scripted.START}\n{textwrap.dedent(_CONNECTED)}"
    with lab.sandbox_namespace.call(
        lambda: subprocess.Popen(
            [*scripted.BY, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ) as process:
        yield Holder(process)


@pytest.fixture(autouse=True)
def _calls_are_told(lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_TYPES", Path("/nowhere"))
    fence(lab, state, monkeypatch)


def _pids(by: Attribution) -> set[int | None]:
    return {each.process.pid for each in by.seen if each.process is not None}


async def test_a_socket_that_was_connected_before_the_run_may_have_sent_what_goes_there(
    lab: Lab,
) -> None:
    with holding(lab) as holder:
        async with watching(lab, top="capture") as watched:

            async def by_another() -> tuple[int, Attribution]:
                number = len(watched.of(socket.IPPROTO_UDP))
                send = _SENDS.format(port=0)
                (pid,) = await asyncio.to_thread(scripted.run, lab, send)
                return pid, (await watched.until(number + 1, protocol=socket.IPPROTO_UDP))[-1]

            # Also of what can't be of before the capture any more.
            for _ in range(5):
                pid, by = await by_another()
                assert (by.sureness, _pids(by)) == ("low", {pid})
                await asyncio.sleep(0.1)
            holder.end()
            # A record names its sender again once it can't be of before the end of that socket.
            async with asyncio.timeout(20):
                while by.process is None:
                    pid, by = await by_another()
            assert (by.sureness, by.process.pid) == ("medium", pid)


async def test_a_socket_that_gave_its_port_up_is_not_taken_for_the_next_one_with_it(
    lab: Lab,
) -> None:
    """The record is read after another process has got the port, and has sent from it."""
    async with (
        Ladder({SANDBOX: lab.sandbox_namespace}) as ladder,
        Nflog(lab.sandbox_namespace, 4001) as source,
    ):
        with holding(lab) as holder:
            holder.do("send")
            holder.do("disconnect")
            (pid,) = scripted.run(lab, _SENDS.format(port=holder.port))
            found: list[Attribution] = []
            async with asyncio.timeout(20):
                async for batch in source.batches():
                    told = await ladder.attributions(SANDBOX, batch.records, batch.since_ns)
                    pairs = zip(batch.records, told, strict=True)
                    found += [by for record, by in pairs if record.protocol == socket.IPPROTO_UDP]
                    if len(found) == 2:
                        break
    assert [(by.process, by.sureness) for by in found] == [(None, "low")] * 2
    assert [_pids(by) for by in found] == [{holder.pid, pid}] * 2
