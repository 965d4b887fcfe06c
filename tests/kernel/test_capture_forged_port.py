"""Attribution of a raw socket's packet that seems to come from another process's socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import socket_method
from tests.kernel import scripted
from tests.kernel.test_capture_details import started
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_USER, _ATTEMPTS = 1000, 8
_OWNER = f"""
    os.setgroups([])
    os.setresgid({_USER}, {_USER}, {_USER})
    os.setresuid({_USER}, {_USER}, {_USER})
    sock = udp()
    sock.bind(("", 5555))
    print_pid()
    sys.stdin.read()
"""
#: The capture takes no process for the sender if its socket is behind the first 4,096 descriptors.
#: The raw socket has the user of the other process, and is closed before the record is read.
_FORGER = f"""
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (6000, 6000))
    libc.setfsuid({_USER})
    for _ in range({_ATTEMPTS}):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        os.dup2(sock.fileno(), 5000)
        sock.close()
        far = socket.socket(fileno=5000)
        with refused: far.sendto(struct.pack("!HHHH", 5555, 443, 8, 0), (TO4[0], 0))
        far.close()
        time.sleep(0.1)
"""


async def test_owner_of_a_forged_port_is_not_named(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_method, "_LATE_NS", 0)  # sockets are watched at once
    fence(lab, state, monkeypatch)
    with started(lab, _OWNER) as owner:
        async with watching(lab) as watched:
            await asyncio.to_thread(scripted.run, lab, _FORGER)
            found = await watched.until(_ATTEMPTS, protocol=17)
        owner.end()
    assert [by.process for by in found] == [None] * _ATTEMPTS
    assert owner.pid in {each.process.pid for by in found for each in by.seen}
