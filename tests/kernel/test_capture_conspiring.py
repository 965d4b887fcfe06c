"""Attribution by capture of two processes of a sandbox, of which one imitates the other."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.kernel import attempts, scripted
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_UDP, _TCP, _ICMPV6 = 17, 6, 58
#: Helpers of both programs, and packets made by hand.
_WITH = """
def of_udp(source, target): return struct.pack("!HHHH", source, target, 13, 0) + b"exfil"
def of_tcp(source, target):
    return struct.pack("!HHIIBBHHH", source, target, 1, 0, 5 << 4, 2, 1024, 0, 0)
def of_ipv6(following, payload):
    addresses = socket.inet_pton(10, "fd00:200::2") + socket.inet_pton(10, TO6[0])
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + addresses + payload
def options(following): return bytes([following, 0, 1, 4, 0, 0, 0, 0])
def by_way_of(sock, other):
    route = bytes([131, 7, 4]) + socket.inet_aton(TO4[0]) + bytes(1)
    sock.setsockopt(socket.SOL_IP, socket.IP_OPTIONS, route)
    return (other, 443)
def raw(family, protocol): return socket.socket(family, socket.SOCK_RAW, protocol)
AGAIN = (socket.SOL_SOCKET, socket.SO_ERROR)
"""
#: Actions of the first process, and of its child, which imitates it.
_ACTIONS: dict[str, tuple[int, str, str]] = {
    "another's datagram, begun": (
        _UDP,
        "s = udp(); s.sendto(b'x', socket.MSG_MORE, TO4)",
        "s.send(b'exfil')",
    ),
    "a datagram of a socket that was disconnected": (
        _UDP,
        "s = udp(); s.bind(('', 5555)); s.sendto(b'x', TO4)",
        """
        s.getsockopt(*AGAIN)
        s.connect(TO4)
        s.send(b'exfil', socket.MSG_MORE)
        libc.connect(s.fileno(), struct.pack("H14x", 0), 16)
        s.setsockopt(17, 1, 0)
        """,
    ),
    "UDP by way of the target": (
        _UDP,
        "s = udp(); s.sendto(b'x', TO4)",
        "s.getsockopt(*AGAIN); s.sendto(b'exfil', by_way_of(s, '198.51.100.9'))",
    ),
    "TCP by way of the target": (
        _TCP,
        """
        s = tcp(); s.setsockopt(1, 2, 1); s.bind(('10.200.0.2', 0)); port = s.getsockname()[1]
        s.connect(TO4)
        """,
        """
        s = tcp(); s.setsockopt(1, 2, 1); s.bind(('10.200.0.2', port))
        s.setblocking(False)  # it gets no answer: the kernel would send its SYN again
        s.connect(by_way_of(s, '198.51.100.9'))
        """,
    ),
    "TCP by hand, from its port": (
        _TCP,
        "s = tcp(); s.bind(('10.200.0.2', 0)); port = s.getsockname()[1]; s.connect(TO4)",
        "raw(2, _TCP).sendto(of_tcp(port, 443), (TO4[0], 0))",
    ),
    "TCP over IPv6 by hand, with options": (
        _TCP,
        "s = tcp(10); s.bind(('fd00:200::2', 0)); port = s.getsockname()[1]; s.connect(TO6)",
        "raw(10, 255).sendto(of_ipv6(60, options(_TCP) + of_tcp(port, 443)), (TO6[0], 0))",
    ),
    "UDP over IPv6 by hand, with options": (
        _UDP,
        "s = udp(10); s.bind(('', 5555)); s.sendto(b'x', TO6)",
        "raw(10, 255).sendto(of_ipv6(60, options(_UDP) + of_udp(5555, 443)), (TO6[0], 0))",
    ),
    "UDP over IPv6, in another first fragment": (
        _UDP,
        "s = udp(10); s.bind(('', 5555)); s.sendto(b'x', TO6)",
        """
        fragment = bytes([_UDP, 0, 0, 1, 0, 0, 0, 7])
        raw(10, 255).sendto(of_ipv6(44, fragment + of_udp(5555, 443)), (TO6[0], 0))
        """,
    ),
    "UDP by hand, in two pieces": (
        _UDP,
        "s = udp(); s.bind(('', 5555)); s.sendto(b'x', TO4)",
        """
        sender, packet = raw(2, _UDP), of_udp(5555, 443)
        sender.sendto(packet[:1], socket.MSG_MORE, (TO4[0], 0))
        sender.sendto(packet[1:], (TO4[0], 0))
        """,
    ),
    "UDP by hand, behind more options than are read": (
        _UDP,
        "s = udp(10); s.bind(('', 5555)); s.sendto(b'x', TO6)",
        """
        many = b"".join(options(60) for _ in range(9)) + options(_UDP)
        raw(10, 255).sendto(of_ipv6(60, many + of_udp(5555, 443)), (TO6[0], 0))
        """,
    ),
    "a ping by hand, with options": (
        _ICMPV6,
        "s = socket.socket(10, 2, 58); s.sendto(struct.pack('!BBHHH', 128, 0, 0, 7, 1), TO6)",
        """
        ping = struct.pack('!BBHHH', 128, 0, 0, 7, 1)
        raw(10, 255).sendto(of_ipv6(60, options(_ICMPV6) + ping), (TO6[0], 0))
        """,
    ),
}


@pytest.mark.parametrize(("protocol", "first", "second"), _ACTIONS.values(), ids=_ACTIONS)
async def test_each_process_is_named_for_its_own_packets(
    lab: Lab,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
    protocol: int,
    first: str,
    second: str,
) -> None:
    fence(lab, state, monkeypatch)
    lab.sandbox_namespace.call(attempts.allow_ping)
    program = "\n".join(
        [
            _WITH,
            f"_UDP, _TCP, _ICMPV6 = {_UDP}, {_TCP}, {_ICMPV6}",
            "print_pid()",
            _refused(first),
            "time.sleep(0.2)",
            "if not os.fork():",
            "    print_pid()",
            textwrap.indent(_refused(second), "    "),
            "    os._exit(0)",
            "os.wait()",
        ]
    )
    async with watching(lab) as watched:
        one, other = await asyncio.to_thread(scripted.run, lab, program)

        def found() -> list[tuple[int | None, int | None, str | None]]:
            return [
                (record.source_port, None if by.process is None else by.process.pid, by.confidence)
                for record, by in watched.found
                if record.protocol == protocol and record.uid == 0
            ]

        with contextlib.suppress(TimeoutError):  # what was found shows why
            await watched.wait_for(lambda: other in {pid for _, pid, _ in found()})
        await asyncio.sleep(0.2)
    pids = [pid for _, pid, _ in found()]
    # Without an answer, the kernel sends a SYN again if its process is held up. That one has no
    # process.
    is_unanswered = protocol == _TCP and "by_way_of" in second
    end = pids.index(other) + 1 if is_unanswered and other in pids else len(pids)
    assert set(pids[end:]) <= {None}
    assert pids[:end][-2:] in ([one, other], [other])
    assert {confidence for _, _, confidence in found()[:end]} == {"high"}
    # The imitation used the same port.
    assert len({port for port, *_ in found()}) == 1


def _refused(action: str) -> str:
    return "with refused:\n" + textwrap.indent(textwrap.dedent(action), "    ")
