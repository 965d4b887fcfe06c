"""A host with a VM: a TAP device, with its far end in this process, and an uplink to an internet.

Packets are sent and received at both ends, so that tests see the kernel's decision on each packet.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import os
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import netns
from ocsf_nft.check import bounded_command
from ocsf_nft.check.accepted_flows import INTERNET, AcceptedFlow, FlowDirection
from ocsf_nft.check.packet import TCP
from ocsf_nft.fence.values import Subnet, subnet
from ocsf_nft.lab import ip, set_sysctls
from tests.kernel import packets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from ocsf_nft.netns import Namespace

DEVICE: Final = "vmtap-1"
UPLINK: Final = "up0"
SUBNETS: Final[tuple[Subnet, ...]] = (subnet("172.16.0.1/30"), subnet("fd00:16::1/64"))
PORT: Final = 3128
_MACHINE: Final = {4: "172.16.0.2", 6: "fd00:16::2"}
_GATEWAY: Final = {4: "172.16.0.1", 6: "fd00:16::1"}
_FAR: Final = {
    4: str(ipaddress.IPv4Address(INTERNET[4])),
    6: str(ipaddress.IPv6Address(INTERNET[6])),
}
_MACHINE_MAC: Final = "02:00:00:00:00:02"
_TAP_MAC: Final = "02:00:00:00:00:01"
_UPLINK_MAC: Final = "02:00:00:00:01:01"
_FAR_MAC: Final = "02:00:00:00:01:02"
_MARKER: Final = 0x88B5  # for local experiments (IEEE 802)
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI: Final = 0x1002
_ALL: Final = 3  # ETH_P_ALL
_WAIT_SECONDS: Final = 60.0
#: Time for packets in one processor's queue after the marker came through another's.
_GRACE_SECONDS: Final = 0.02


@dataclass
class VmHost:
    """The ends of a host's links; ``namespace`` is the host's."""

    namespace: Namespace
    tap: int
    uplink: socket.socket
    far: socket.socket
    _ports: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(33000, 60000)))

    def gets_through(
        self, out: AcceptedFlow, *, is_expected: bool = True, is_reply_expected: bool = True
    ) -> tuple[bool, bool | None]:
        """Return whether the VM's packet arrives, and whether the reply to it arrives.

        The second value is None if the packet does not arrive. A packet to the gateway's port has
        arrived if the gateway answers it. The method waits longer for an expected packet, in case
        the machine is slow.
        """
        return self._tries(
            out, next(self._ports), is_expected=is_expected, is_reply_expected=is_reply_expected
        )

    def goes_on(self, out: AcceptedFlow, *, is_expected: bool = False) -> bool:
        """Return whether the VM's packets arrive after a TCP connection opened; it must open."""
        version, port, to = out.packet.version, next(self._ports), out.packet.destination_port.low
        opened = self._tries(out, port, is_expected=True, is_reply_expected=True)
        assert opened == (True, True)
        self._from_machine(version, _FAR[version], packets.tcp(to, 0x10, port))
        seen = self._arriving(self.far.fileno(), _ends(port, to), is_expected=is_expected)
        return seen is not None

    def _tries(
        self, out: AcceptedFlow, port: int, *, is_expected: bool, is_reply_expected: bool
    ) -> tuple[bool, bool | None]:
        version = out.packet.version
        to = out.packet.destination_port.low
        is_tcp = out.packet.protocol == TCP
        if out.direction is FlowDirection.GATEWAY:
            self._from_machine(version, _GATEWAY[version], packets.tcp(to, 0x02, port))
            answer = self._arriving(self.tap, _ends(to, port), is_expected=is_expected)
            return answer is not None, None
        payload = packets.tcp(to, 0x02, port) if is_tcp else _udp(port, to)
        # A late packet of an earlier attempt could have the same destination port.
        while select.select([self.far], [], [], 0)[0]:
            self.far.recv(65536)
        self._from_machine(version, _FAR[version], payload)
        seen = self._arriving(self.far.fileno(), _ends(None, to), is_expected=is_expected)
        if seen is None:
            return False, None
        self._reply(version, seen, is_tcp=is_tcp)
        reply = self._arriving(self.tap, _ends(to, port), is_expected=is_reply_expected)
        return True, reply is not None

    def _from_machine(self, version: int, to: str, payload: bytes) -> None:
        os.write(
            self.tap, _frame(version, (_MACHINE_MAC, _TAP_MAC), (_MACHINE[version], to), payload)
        )

    def _reply(self, version: int, seen: bytes, *, is_tcp: bool) -> None:
        """Answer a frame that arrived on the far side, at the source address that it has there."""
        header = 20 if version == 4 else 40
        packet = seen[14:]
        source = packet[12:16] if version == 4 else packet[8:24]
        sport, dport = struct.unpack_from("!HH", packet, header)
        payload = packets.tcp(sport, 0x12, dport) if is_tcp else _udp(dport, sport)
        ends = (_FAR[version], str(ipaddress.ip_address(source)))
        self.far.send(_frame(version, (_FAR_MAC, _UPLINK_MAC), ends, payload))

    def _arriving(
        self, end: int, is_match: Callable[[bytes], bool], *, is_expected: bool
    ) -> bytes | None:
        """Return the first matching frame; None if none arrives.

        If no frame is expected, wait until a marker sent after it has arrived.
        """
        marker = _marker(next(self._ports))
        if not is_expected:
            self._mark(end, marker)
        deadline, is_marked = time.monotonic() + _WAIT_SECONDS, False
        while (left := deadline - time.monotonic()) > 0 and select.select([end], [], [], left)[0]:
            frame = os.read(end, 65536)
            if is_match(frame):
                return frame
            if frame[12 : len(marker) + 12] == marker:
                is_marked = True
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        assert is_expected or is_marked, "the marker has not arrived"
        return None

    def _mark(self, end: int, marker: bytes) -> None:
        """Send a frame out of the host's interface, without passing the IP hooks."""
        if end != self.tap:
            self.uplink.send(_addresses(_UPLINK_MAC, _FAR_MAC) + marker.ljust(48, b"\0"))
            return

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind((DEVICE, 0))
                raw.send(_addresses(_TAP_MAC, _MACHINE_MAC) + marker.ljust(48, b"\0"))

        self.namespace.call(send)


def own_iptables_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give legacy iptables a lock file of the test's own, in ``folder``.

    Each network namespace has its own tables, but the host has one lock file. Most commands fail at
    once if the command of another test has locked it.
    """
    lock = str(folder / "xtables.lock")
    monkeypatch.setenv("XTABLES_LOCKFILE", lock)
    monkeypatch.setitem(bounded_command._ENVIRONMENT, "XTABLES_LOCKFILE", lock)


@contextlib.contextmanager
def vm_host() -> Iterator[VmHost]:
    """Create the host with routes, neighbours, forwarding, and a listener on the gateway's port."""
    with contextlib.ExitStack() as cleanup:
        host, far = (cleanup.enter_context(_namespace()) for _ in range(2))
        tap = host.call(_tap)
        cleanup.callback(os.close, tap)
        host.call(lambda: _batch(_HOST))
        # Created in the far namespace and moved, so that only the host's end gets a configuration.
        far.call(lambda: _batch([f"link add up1 address {_FAR_MAC} type veth peer name {UPLINK}"]))
        _move(far, host)
        far.call(lambda: _batch(["link set up1 up"]))
        host.call(lambda: _batch(_ROUTES))
        host.call(_forward)
        listeners = host.call(_listeners)
        ends = [host.call(lambda: _raw(UPLINK)), far.call(lambda: _raw("up1"))]
        for opened in (*listeners, *ends):
            cleanup.callback(opened.close)
        yield VmHost(namespace=host, tap=tap, uplink=ends[0], far=ends[1])


_HOST: Final = [
    "link set lo up",
    f"link set {DEVICE} address {_TAP_MAC} up",
    f"address add 172.16.0.1/30 dev {DEVICE}",
    f"address add fd00:16::1/64 dev {DEVICE} nodad",
    f"neighbour add 172.16.0.2 lladdr {_MACHINE_MAC} dev {DEVICE}",
    f"neighbour add fd00:16::2 lladdr {_MACHINE_MAC} dev {DEVICE}",
]
_ROUTES: Final = [
    f"link set {UPLINK} address {_UPLINK_MAC} up",
    f"address add 198.18.0.2/24 dev {UPLINK}",
    f"address add 2001:db8:1::2/64 dev {UPLINK} nodad",
    f"neighbour add 198.18.0.1 lladdr {_FAR_MAC} dev {UPLINK}",
    f"neighbour add 2001:db8:1::1 lladdr {_FAR_MAC} dev {UPLINK}",
    "route add default via 198.18.0.1",
    "-6 route add default via 2001:db8:1::1",
]


@contextlib.contextmanager
def _namespace() -> Iterator[Namespace]:
    """Create a namespace that exists as long as a process in it."""
    process = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        made = netns.of_process(process.pid)
        made.call(set_sysctls)
        yield made
    finally:
        process.kill()
        process.communicate()


def _move(source: Namespace, to: Namespace) -> None:
    assert to.path is not None
    pid = to.path.parts[2]
    source.call(lambda: ip("link", "set", UPLINK, "netns", pid))


def _batch(lines: list[str]) -> None:
    for line in lines:
        ip(*line.split())


def _forward() -> None:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{name}").write_text("1")


def _tap() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TAP_NO_PI))
    return descriptor


def _listeners() -> list[socket.socket]:
    found = []
    for family, address in ((socket.AF_INET, _GATEWAY[4]), (socket.AF_INET6, _GATEWAY[6])):
        listener = socket.socket(family)
        listener.bind((address, PORT))
        listener.listen(64)
        found.append(listener)
    return found


def _raw(device: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    raw.bind((device, _ALL))
    return raw


def _ends(source: int | None, to: int) -> Callable[[bytes], bool]:
    """Return a test for TCP or UDP packets between these ports, without resets of a refusal.

    ``source`` None: any port, because NAT may have changed it.
    """

    def is_match(frame: bytes) -> bool:
        kind = int.from_bytes(frame[12:14], "big")
        header = {packets.ETH_IP: 20, packets.ETH_IP6: 40}.get(kind)
        if header is None or len(frame) < 14 + header + 14:
            return False
        protocol = frame[14 + 9] if header == 20 else frame[14 + 6]
        if protocol not in {6, 17}:
            return False
        found, target = struct.unpack_from("!HH", frame, 14 + header)
        is_reset = protocol == 6 and bool(frame[14 + header + 13] & 0x04)
        return not is_reset and target == to and source in {None, found}

    return is_match


def _frame(version: int, macs: tuple[str, str], ends: tuple[str, str], payload: bytes) -> bytes:
    protocol = 17 if len(payload) != 20 else 6
    payload = _checked(version, ends, protocol, payload)
    packet = (
        packets.ip4(*ends, protocol, payload)
        if version == 4
        else packets.ip6(*ends, protocol, payload)
    )
    kind = packets.ETH_IP if version == 4 else packets.ETH_IP6
    source, destination = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return packets.frame(destination, source, kind, packet)


def _checked(version: int, ends: tuple[str, str], protocol: int, payload: bytes) -> bytes:
    """Return the payload with a valid checksum; otherwise the kernel drops it as invalid."""
    pseudo = b"".join(ipaddress.ip_address(end).packed for end in ends)
    tail = struct.pack("!HH" if version == 4 else "!II", *(
        (protocol, len(payload)) if version == 4 else (len(payload), protocol)
    ))  # fmt: skip
    total = packets.checksum(pseudo + tail + payload) or 0xFFFF
    at = 16 if protocol == 6 else 6
    return payload[:at] + struct.pack("!H", total) + payload[at + 2 :]


def _udp(source: int, to: int) -> bytes:
    return struct.pack("!HHHH", source, to, 8 + 6, 0) + packets.PAYLOAD


def _addresses(source: str, destination: str) -> bytes:
    return b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (destination, source))


def _marker(number: int) -> bytes:
    return struct.pack("!HI", _MARKER, number)
