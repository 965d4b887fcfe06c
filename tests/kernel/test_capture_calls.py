"""Attribution by reported calls: no process is named that may not have sent the packet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import bpf_capture
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import scripted
from tests.kernel.watching import attached, fence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Attribution

pytestmark = pytest.mark.kernel

#: A process with a connected socket that sends, and gives up its port.
_GIVES_UP = """
    sock = udp()
    sock.connect(TO4)
    port = sock.getsockname()[1]
    with refused: sock.send(b"mine")
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
    print(os.getpid(), port, flush=True)
    sys.stdin.read()
"""
_SENDS = """
    print_pid()
    sock = udp()
    sock.bind(("", {port}))
    with refused: sock.sendto(b"another", TO4)
"""
#: A connection from a port; the process ends at once.
_CONNECTS = """
    print_pid()
    sock = tcp(socket.AF_INET6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    {header}
    sock.setblocking(False)  # the socket does not get the answer to a detour
    sock.bind(("", 40_000))
    with refused: sock.connect({to})
"""
#: A segment routing header (RFC 8754): the packet goes to TO6 first, then to its destination.
_DETOUR = """
    segments = bytes(16) + socket.inet_pton(socket.AF_INET6, TO6[0])
    header = bytes((0, len(segments) // 8, 4, 1, 1, 0, 0, 0)) + segments
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
"""


@pytest.fixture(autouse=True)
def _calls_are_reported(lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf_capture, "_TYPES", Path("/nowhere"))
    fence(lab, state, monkeypatch)


class Reader:
    """Reader of a log after all attempts are done, so that its records are late."""

    def __init__(self, chain: FallbackChain, attachment: AttachedNamespace, source: Nflog) -> None:
        self._chain, self._attachment, self._source = chain, attachment, source

    async def read(self, protocol: int, number: int) -> list[Attribution]:
        """Return the attributions of at least ``number`` packets of a protocol."""
        found: list[Attribution] = []
        async with asyncio.timeout(60):
            async for batch in self._source.batches():
                by = await self._chain.attributions(self._attachment, batch.records, batch.since_ns)
                pairs = zip(batch.records, by, strict=True)
                found += [each for record, each in pairs if record.protocol == protocol]
                if len(found) >= number:
                    break
        return found


@pytest.fixture
async def reader(lab: Lab) -> AsyncIterator[Reader]:
    async with (
        FallbackChain() as chain,
        attached(chain, lab.sandbox_namespace) as attachment,
        Nflog(lab.sandbox_namespace, 4001) as source,
    ):
        yield Reader(chain, attachment, source)


@contextlib.contextmanager
def _giving_up(lab: Lab) -> Iterator[tuple[int, int]]:
    """Run a process that gives up a port and stays; yield its number and the port."""
    program = f"{scripted.START}\n{textwrap.dedent(_GIVES_UP)}"
    with lab.sandbox_namespace.call(
        lambda: subprocess.Popen(
            [*scripted.BY, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ) as process:
        assert process.stdout is not None
        pid, port = map(int, process.stdout.readline().split())
        yield pid, port


async def test_former_owner_of_a_port_is_only_a_candidate_for_its_next_packet(
    lab: Lab, reader: Reader
) -> None:
    with _giving_up(lab) as (first, port):
        (second,) = scripted.run(lab, _SENDS.format(port=port))
        found = await reader.read(socket.IPPROTO_UDP, 2)
    assert [(by.process, by.confidence) for by in found] == [(None, "low")] * 2
    listed = [{each.process.pid for each in by.seen if each.process} for by in found]
    assert listed == [{first, second}] * 2


async def test_packet_with_a_detour_is_not_attributed_to_a_caller_of_its_first_hop(
    lab: Lab, reader: Reader
) -> None:
    (first,) = scripted.run(lab, _CONNECTS.format(header="", to="TO6"))
    detour = textwrap.indent(textwrap.dedent(_DETOUR), "    ")
    scripted.run(lab, _CONNECTS.format(header=detour, to='("2001:db8::9", 443)'))
    # The kernel sends a SYN without an answer again if its process is held up.
    direct, *by_detour = await reader.read(socket.IPPROTO_TCP, 2)
    assert direct.process is not None
    assert (direct.process.pid, direct.confidence) == (first, "medium")
    assert by_detour
    assert {by.process for by in by_detour} == {None}
