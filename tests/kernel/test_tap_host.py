"""Protection of a host from a VM, and from the remaining record of a VM."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import FenceError, UsageError
from ocsf_nft.fence import installer, verification
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import INTERNET4, INTERNET6
from ocsf_nft.netns import HOST
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import conftest, packets, tap
from tests.kernel.reading import until_found
from tests.kernel.vm_escapes import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory

pytestmark = pytest.mark.kernel

_NAME = "vm-7"
_PEER = 51820
_ROUTING, _FRAGMENT, _OPTIONS, _UDP = 43, 44, 60, 17


@pytest.fixture
def machine(site: tap.Site) -> Iterator[tap.Machine]:
    with tap.silent_machine(site) as plugged:
        for name in ("arp for the gateway", "a solicitation for the gateway"):
            plugged.send(ALLOWED[name])
        yield plugged


def _udp(source: str, to: str, port: int) -> bytes:
    datagram = struct.pack("!HHHH", port, port, 8 + len(packets.PAYLOAD), 0) + packets.PAYLOAD
    make = packets.ip6 if ":" in to else packets.ip4
    return packets.summed(make(source, to, _UDP, datagram))


@pytest.mark.parametrize(
    ("vm", "host", "internet"),
    [(tap.VM4, tap.UPLINK4, INTERNET4), (tap.VM6, tap.UPLINK6, INTERNET6)],
)
def test_vm_on_the_same_ports_receives_no_packets_for_the_host(
    site: tap.Site, machine: tap.Machine, state: StateDirectory, vm: str, host: str, internet: str
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    family = socket.AF_INET6 if ":" in vm else socket.AF_INET
    # A low port, and a port that the kernel takes for no service's port.
    for port in (500, _PEER):
        ours = site.host.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
        peer = site.internet.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
        with ours, peer:
            for sock, address in ((ours, host), (peer, internet)):
                sock.bind((address, port))
                sock.settimeout(5)
            machine.send_ip(_udp(vm, internet, port))
            assert peer.recv(99) == packets.PAYLOAD
            peer.sendto(b"for the host", (host, port))
            assert ours.recv(99) == b"for the host"


async def test_a_routing_header_in_a_later_fragment_is_refused(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    hops = packets.ip6("::", tap.UPLINK6, 0, b"")[24:40]
    pieces = (
        bytes([_ROUTING, 0, 1, 4, 0, 0, 0, 0]),
        bytes([_UDP, 2, 4, 1, 0, 0, 0, 0]) + hops + packets.udp(777),
    )
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        for offset, piece in enumerate(pieces):
            head = struct.pack("!BBHI", _OPTIONS, 0, offset << 3 | (not offset), 77)
            machine.send_ip(packets.ip6(tap.VM6, INTERNET6, _FRAGMENT, head + piece))
        found = await until_found(source, lambda record: record.rule == "vm-forward")
    assert any(record.rule == "vm-forward" for record in found)


def _guarding(sandbox: str) -> FenceSpec:
    proxy = endpoint(f"{INTERNET4}:3128")
    return FenceSpec(sandbox=sandbox, proxies=(proxy,), guard_device=tap.DEVICE)


@pytest.mark.usefixtures("machine")
def test_link_table_of_a_vm_and_guard_of_its_device_do_not_replace_each_other(
    site: tap.Site, state: StateDirectory
) -> None:
    def try_both() -> None:
        installer.install(tap.spec(_NAME), HOST, state, "nflog")
        with pytest.raises(FenceError, match=f"that of sandbox {_NAME}"):
            installer.install(_guarding("pod"), site.internet, state, "nflog")
        assert verification.verify(_NAME, state).verdict == "as installed"
        installer.remove(_NAME, state)
        installer.install(_guarding("pod"), site.internet, state, "nflog")
        with pytest.raises(FenceError, match="that of sandbox pod"):
            installer.install(tap.spec(_NAME), HOST, state, "nflog")
        assert verification.verify("pod", state).verdict == "as installed"
        # A guard without a record is stale, as a VM's table is.
        state.delete("pod")
        installer.install(tap.spec(_NAME), HOST, state, "nflog")
        assert verification.verify(_NAME, state).verdict == "as installed"

    site.host.call(try_both)


@pytest.mark.usefixtures("machine")
def test_link_table_of_a_vm_that_replaces_the_sandboxs_former_guard_remains(
    site: tap.Site, state: StateDirectory
) -> None:
    def change() -> None:
        installer.install(_guarding(_NAME), site.internet, state, "nflog")
        conftest.nft(site.internet, "flush", "ruleset")
        installer.install(tap.spec(_NAME), HOST, state, "nflog")
        assert verification.verify(_NAME, state).verdict == "as installed"

    site.host.call(change)


def test_loopback_is_refused_as_a_vms_device(site: tap.Site, state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="loopback"):
        installer.install(tap.spec(_NAME, "lo"), site.host, state, "nflog")
    assert conftest.nft(site.host, "list", "ruleset") == ""


@pytest.mark.usefixtures("machine")
def test_record_of_a_removed_fence_keeps_no_setting_enabled(
    site: tap.Site, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    gateways = ("172.16.8.1/29", "fd00:8::1/64")
    with tap.silent_machine(site, "vmtap-1", gateways):
        installer.install(tap.spec("former", "vmtap-1", *gateways), site.host, state, "nflog")
    # As after a boot, which changes no record.
    conftest.nft(site.host, "flush", "ruleset")
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


@pytest.mark.usefixtures("machine")
def test_settings_of_an_earlier_namespace_with_the_same_inode_are_not_restored(
    site: tap.Site, state: StateDirectory
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    (stored,) = state.path.glob("forwarding-*")
    origin, values = json.loads(stored.read_text())
    boot, cookie = origin.split()
    stored.write_text(json.dumps([f"{boot} {int(cookie) + 1}", values]))
    before = tap.settings(site.host)
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before
    assert not stored.exists()


@pytest.mark.parametrize(
    ("vm", "internet"), [(tap.VM4, INTERNET4), (tap.VM6, INTERNET6)], ids=["ip4", "ip6"]
)
async def test_next_vm_with_the_same_address_receives_no_answers_to_an_exited_vm(
    site: tap.Site, state: StateDirectory, vm: str, internet: str
) -> None:
    family = socket.AF_INET6 if ":" in vm else socket.AF_INET
    peer = site.internet.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    with peer:
        peer.bind((internet, _PEER))
        peer.settimeout(60)
        seen = []
        for name in (_NAME, "vm-8"):
            with tap.machine(site) as machine:
                installer.install(tap.spec(name), site.host, state, "nflog")
                machine.send_ip(_udp(vm, internet, _PEER))
                seen.append(peer.recvfrom(99)[1])
                async with Nflog(site.host, DEFAULT_GROUP) as source:
                    for sender in seen:
                        peer.sendto(f"for {sender}".encode(), sender)
                    if len(seen) > 1:
                        await until_found(source, lambda record: record.rule == "vm-ingress")
                    got = _awaited(machine, f"for {seen[-1]}".encode())
                assert len(seen) == 1 or not any(f"for {seen[0]}".encode() in each for each in got)
            installer.remove(name, state)
    assert len(set(seen)) == 2


def _awaited(machine: tap.Machine, payload: bytes) -> list[bytes]:
    """Wait for a payload; return the frames that the VM has received then."""
    deadline = time.monotonic() + 60
    while not any(payload in frame for frame in machine.received):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return machine.received
