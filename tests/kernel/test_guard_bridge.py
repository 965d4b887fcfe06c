"""Guards on the ports of a bridge on the host, as container engines make them."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft import rtnetlink
from ocsf_nft.fence import installer, verification
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import configure, ip, new_namespace
from ocsf_nft.netns import named
from tests.kernel import headers, packets, xdp
from tests.kernel.outcomes import Outcomes, mac_of, send_frame
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_PORT: Final = 3128
_GATEWAY4, _GATEWAY6 = "10.77.0.1", "fd00:77::1"
_ALL: Final = b"\xff" * 6
#: Text that a frame carries from one machine to another.
_PAYLOAD: Final = b"chosen payload"


@dataclass(frozen=True)
class _Machine:
    """Namespace with a port of the bridge."""

    name: str
    port: str
    number: int

    @property
    def namespace(self) -> Namespace:
        return named(self.name)

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:77::{self.number}"

    @property
    def mac(self) -> bytes:
        return bytes([2, 0, 0, 0, 0, self.number])

    def send(self, frame: bytes) -> None:
        self.namespace.call(partial(send_frame, frame, "eth0"))


@dataclass(frozen=True)
class _Site:
    host: Namespace
    machines: tuple[_Machine, ...]
    state: StateDirectory

    def install(self, machine: _Machine, *proxies: str, allow: str = "") -> InstalledFence:
        spec = FenceSpec(
            sandbox=machine.name,
            proxies=tuple(map(endpoint, proxies)),
            exceptions=tuple(map(exception, allow.split())),
            finds_guard=True,
        )
        return self.host.call(
            lambda: installer.install(spec, machine.namespace, self.state, "nflog")
        )

    def bridge_mac(self) -> bytes:
        return self.host.call(lambda: mac_of("br0"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[_Site]:
    """Make a host with a bridge that is the gateway of three machines."""
    token = secrets.token_hex(3)
    host = f"ocsf-nft-{token}-host"
    machines = tuple(_Machine(f"ocsf-nft-{token}-{n}", f"veth{n}", n) for n in (2, 3, 4))
    with contextlib.ExitStack() as stack:
        for name in (host, *(each.name for each in machines)):
            stack.enter_context(new_namespace(name))
        ip("-n", host, "link", "add", "br0", "type", "bridge")
        # As Docker does: the bridge keeps its link address when ports come and go.
        ip("-n", host, "link", "set", "br0", "address", "02:00:00:00:00:01")
        configure(host, "br0", f"{_GATEWAY4}/24", f"{_GATEWAY6}/64")
        for each in machines:
            ip(
                *("-n", each.name, "link", "add", "eth0", "address", each.mac.hex(":")),
                *("type", "veth", "peer", "name", each.port, "netns", host),
            )
            ip("-n", host, "link", "set", each.port, "master", "br0", "up")
            configure(each.name, "eth0", f"{each.address}/24", f"{each.address6}/64")
            ip("-n", each.name, "route", "add", "default", "via", _GATEWAY4)
        yield _Site(named(host), machines, StateDirectory(tmp_path / "state"))


@contextlib.contextmanager
def _capture(machine: _Machine) -> Iterator[socket.socket]:
    """Yield a socket that receives all frames of a machine."""

    def opened() -> socket.socket:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        found.bind(("eth0", 3))
        found.setblocking(False)
        return found

    with machine.namespace.call(opened) as sock:
        yield sock


def _received(sock: socket.socket, last: bytes) -> list[bytes]:
    """Return the frames that arrived up to one with the text ``last``."""
    found: list[bytes] = []
    end = time.monotonic() + 20
    while not any(last in each for each in found):
        assert time.monotonic() < end
        if select.select([sock], [], [], 0.05)[0]:
            found.append(sock.recv(4096))
    return [each for each in found if last not in each]


def _reaches_proxy(site: _Site, machine: _Machine) -> None:
    for host in (_GATEWAY4, _GATEWAY6):
        with (
            site.host.call(partial(_listener, host)) as server,
            machine.namespace.call(partial(socket.create_connection, (host, _PORT), 10)) as client,
            server.accept()[0] as accepted,
        ):
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(client.recv(left))


def _listener(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, _PORT), family=family)


def _counted(site: _Site, machine: _Machine) -> Outcomes:
    table = f"ocsf_nft_{machine.port}"
    names = "refused_guard", "refused_guard-ingress", "maintenance"
    return Outcomes(site.host, {name: ("netdev", table, name) for name in names})


def test_neighbours_exchange_no_payload_with_a_guarded_sandbox(site: _Site) -> None:
    """A sandbox that bypasses its fence sends nothing to a neighbour, and receives nothing."""
    sandbox, neighbour, _ = site.machines
    installed = site.install(sandbox, f"{_GATEWAY4}:{_PORT}", f"[{_GATEWAY6}]:{_PORT}")
    assert [end.name for end in installed.around.host.ends] == [sandbox.port]
    _reaches_proxy(site, sandbox)
    gateway = site.bridge_mac()
    to_proxy = packets.ip4(sandbox.address, _GATEWAY4, 6, packets.tcp(_PORT, ACK) + _PAYLOAD)
    arp = packets.arp(sandbox.address, _GATEWAY4, sandbox.mac)
    arp_of = partial(packets.arp, sandbox.address)
    solicited = headers.neighbour(
        sandbox.address6, "ff02::1:ff00:3", target=neighbour.address6, options=b"\x0e\1" + b"chosen"
    )
    frames = {
        "to the proxy at the neighbour": (neighbour.mac, sandbox.mac, ETH_IP, to_proxy),
        "to the proxy at all": (_ALL, sandbox.mac, ETH_IP, to_proxy),
        "to the proxy at a group": (b"\1\0\x5e\0\0\1", sandbox.mac, ETH_IP, to_proxy),
        "payload as link source": (_ALL, b"\2chose", ETH_ARP, arp),
        "payload as target of arp": (_ALL, sandbox.mac, ETH_ARP, arp_of("99.104.111.115", b"")),
        "payload behind arp": (_ALL, sandbox.mac, ETH_ARP, arp + _PAYLOAD + bytes(4)),
        "payload in neighbour discovery": (
            bytes.fromhex("3333ff000003"), sandbox.mac, ETH_IP6, solicited
        ),
        "payload of an unknown kind": (neighbour.mac, sandbox.mac, 0x88B5, _PAYLOAD),
    }  # fmt: skip
    with _capture(neighbour) as sock, contextlib.closing(_counted(site, sandbox)) as counted:
        before = counted.counts()["refused_guard"]
        for to, source, kind, payload in frames.values():
            frame = packets.frame(to, source, kind, payload)
            sandbox.namespace.call(partial(xdp.send, "eth0", frame))
        last = neighbour.namespace.call(lambda: mac_of("eth0")) + gateway + b"\x88\xb6last"
        site.host.call(partial(send_frame, last.ljust(60, b"\0"), "br0"))
        found = _received(sock, b"last")
        assert counted.counts()["refused_guard"] - before == len(frames)
    assert not [each for each in found if each[6:12] == sandbox.mac or b"chose" in each]


def test_neighbours_cannot_send_to_a_guarded_sandbox(site: _Site) -> None:
    sandbox, neighbour, _ = site.machines
    site.install(sandbox, f"{_GATEWAY4}:{_PORT}", f"[{_GATEWAY6}]:{_PORT}")
    gateway, own = site.bridge_mac(), sandbox.mac
    reply = packets.ip4(_GATEWAY4, sandbox.address, 6, packets.tcp(4000, ACK, _PORT) + _PAYLOAD)
    ping = packets.ip4(neighbour.address, sandbox.address, 1, packets.icmp_echo() + _PAYLOAD)
    to_sandbox = {
        "as the proxy": (own, neighbour.mac, ETH_IP, reply),
        "as the proxy, with the gateway's link address": (own, gateway, ETH_IP, reply),
        "ping": (own, neighbour.mac, ETH_IP, ping),
        "unknown": (own, neighbour.mac, 0x88B5, _PAYLOAD),
    }
    quiet = {
        "to all": (_ALL, neighbour.mac, 0x88B5, _PAYLOAD),
        "multicast": (b"\1\0\x5e\0\0\xfb", neighbour.mac, ETH_IP, ping),
        "arp of the neighbour": (
            _ALL, neighbour.mac, ETH_ARP,
            packets.arp(neighbour.address, sandbox.address, neighbour.mac),
        ),
        "to nobody": (b"\2\0\0\0\0\x66", neighbour.mac, 0x88B5, _PAYLOAD),
    }  # fmt: skip
    with _capture(sandbox) as sock, contextlib.closing(_counted(site, sandbox)) as counted:
        before = counted.counts()
        for to, source, kind, payload in (*to_sandbox.values(), *quiet.values()):
            neighbour.send(packets.frame(to, source, kind, payload))
        # The proxy's kernel may send: an answer to a packet of no connection.
        request = packets.summed(
            packets.ip4(sandbox.address, _GATEWAY4, 6, packets.tcp(_PORT, ACK, 4001))
        )
        frame = packets.frame(gateway, own, ETH_IP, request)
        sandbox.namespace.call(partial(xdp.send, "eth0", frame))
        found = _received(sock, (_PORT).to_bytes(2, "big") + (4001).to_bytes(2, "big"))
        after = counted.counts()
    assert not [each for each in found if each[6:12] == neighbour.mac or _PAYLOAD in each]
    grown = {name: after[name] - before[name] for name in before}
    assert grown["refused_guard-ingress"] == len(to_sandbox)
    assert grown["maintenance"] >= len(quiet)
    assert grown["refused_guard"] == 0


def test_guard_follows_a_gateway_with_another_link_address(site: _Site) -> None:
    sandbox, _, _ = site.machines
    site.install(sandbox, f"{_GATEWAY4}:{_PORT}", f"[{_GATEWAY6}]:{_PORT}")
    ip("-n", site.host.path.name if site.host.path else "", "link", "set", "br0", "address",
       "02:00:00:00:00:99")  # fmt: skip
    name, state = sandbox.name, site.state
    found = site.host.call(lambda: verification.verify(name, state))
    assert found.verdict == "differs"
    assert "the gateway has another link address now" in found.difference
    renewed = site.host.call(lambda: installer.renew(name, state))
    assert renewed is not None
    assert "02:00:00:00:00:99" in renewed.around.host.gateway_macs
    ip("-n", name, "neigh", "flush", "dev", "eth0")
    _reaches_proxy(site, sandbox)


def test_guard_follows_a_proxy_that_is_another_machine(site: _Site) -> None:
    """The proxy's address moves to another machine on the bridge, as with VRRP."""
    sandbox, proxy, standby = site.machines
    address = "10.77.0.100"
    ip("-n", proxy.name, "address", "add", f"{address}/24", "dev", "eth0")
    installed = site.install(sandbox, f"{address}:{_PORT}")
    assert list(map(str, installed.around.host.next_hops)) == [address]

    def connects(machine: _Machine) -> None:
        with (
            machine.namespace.call(lambda: socket.create_server((address, _PORT))) as server,
            sandbox.namespace.call(lambda: socket.create_connection((address, _PORT), 10)),
            server.accept()[0],
        ):
            pass

    connects(proxy)
    ip("-n", proxy.name, "address", "del", f"{address}/24", "dev", "eth0")
    ip("-n", standby.name, "address", "add", f"{address}/24", "dev", "eth0")
    announced = packets.frame(
        _ALL, standby.mac, ETH_ARP, packets.arp(address, address, standby.mac)
    )
    ip("-n", sandbox.name, "neigh", "flush", "dev", "eth0")
    standby.send(announced)
    connects(standby)
    name = sandbox.name
    site.host.call(lambda: installer.renew(name, site.state))
    connects(standby)


def test_many_objects_inside_change_no_check_of_a_guard(
    site: _Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in the sandbox may add any number of addresses, neighbours and routes."""
    sandbox, router, _ = site.machines
    ip("-n", sandbox.name, "route", "add", "203.0.113.0/24", "via", router.address)
    ip(
        *("-n", sandbox.name, "neighbour", "add", router.address),
        *("lladdr", router.mac.hex(":"), "dev", "eth0"),
    )
    installed = site.install(sandbox, f"{_GATEWAY4}:{_PORT}", allow="tcp:203.0.113.0/24:443")
    assert list(map(str, installed.around.host.next_hops)) == [router.address]
    assert installed.around.host.next_hop_macs == (router.mac.hex(":"),)
    assert _verify(site, sandbox) == "as installed"
    batch = "".join(
        f"route add blackhole 10.{number >> 8}.{number & 255}.0/24\n" for number in range(10_001)
    )
    command = ["ip", "-n", sandbox.name, "-batch", "-"]
    subprocess.run(command, input=batch, text=True, check=True)
    with monkeypatch.context() as patch:
        for name in ("addresses", "neighbours"):
            read = partial(_of_the_host, getattr(rtnetlink, name), site.host.call(_namespace))
            patch.setattr(rtnetlink, name, read)
        assert _verify(site, sandbox) == "as installed"
        renewed = site.host.call(lambda: installer.renew(sandbox.name, site.state))
        assert renewed == installed


def _verify(site: _Site, machine: _Machine) -> str:
    found = site.host.call(lambda: verification.verify(machine.name, site.state))
    return found.difference or found.verdict


def _of_the_host(
    read: Callable[..., Iterator[Any]], host: int, most: int | None = None
) -> Iterator[Any]:
    """Read objects of the host; those of another namespace must not be read."""
    assert _namespace() == host
    return read(most)


def _namespace() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino
