"""Packets that a VM's fence refuses on its host, and the record of each refusal."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.lab import INTERNET4
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import conftest, tap
from tests.kernel.packets import PAYLOAD
from tests.kernel.reading import until_found
from tests.kernel.vm_escapes import ALLOWED, FORBIDDEN, LINK, THROUGH, Forbidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_NAME = "vm-7"
#: Other tables of a host: a container's published port and a cluster's service.
PUBLISHED = f"""
table ip published {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {tap.GATEWAY4} tcp dport 8080 dnat to {INTERNET4}:80
        ip daddr 10.96.0.1 tcp dport 443 dnat to {INTERNET4}:443
    }}
}}
"""


class Captures:
    """Captures of packets that passed the fence.

    They are on the host's link behind the fence's first hook, on the host's sockets, and on the
    internet.
    """

    def __init__(self, site: tap.Site) -> None:
        self._link = [
            site.host.call(partial(_packet_socket, kind, tap.DEVICE))
            for kind in (0x0800, 0x86DD, 0x0806, 0x88B5, 0x8847, 0x8864, 0x8100, 0x88A8)
        ]
        self._host = [
            site.host.call(partial(_raw_socket, family, number))
            for family, numbers in (
                (socket.AF_INET, (1, 6, 17, 253)),
                (socket.AF_INET6, (6, 17, 58, 253)),
            )
            for number in numbers
        ]
        self._internet = [site.internet.call(lambda: _packet_socket(3, "in0"))]

    def captured(self, where: str) -> list[bytes]:
        """Return the packets that have arrived so far at "link", "host" or "internet"."""
        return [packet for sock in getattr(self, f"_{where}") for packet in _drained(sock)]

    def close(self) -> None:
        for sock in self._link + self._host + self._internet:
            sock.close()


def _packet_socket(kind: int, device: str) -> socket.socket:
    # With one ethertype it receives accepted frames; with all (3), frames before the ingress hook.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    sock.bind((device, kind))
    sock.setblocking(False)
    return sock


def _raw_socket(family: int, number: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_RAW, number)
    sock.setblocking(False)
    return sock


def _drained(sock: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, address = sock.recvfrom(65535)
            if sock.family != socket.AF_PACKET or address[2] != 4:  # PACKET_OUTGOING
                yield packet


@pytest.fixture
def machine(site: tap.Site) -> Iterator[tap.Machine]:
    with tap.silent_machine(site) as plugged:
        yield plugged


@pytest.fixture
def captures(site: tap.Site, machine: tap.Machine, state: StateDirectory) -> Iterator[Captures]:
    """Fence a VM on a host with published ports, and capture packets that pass the fence."""
    conftest.load(site.host, PUBLISHED)
    tap.routes_back(site)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    captures = Captures(site)
    try:
        # The fence learns the VM's link address, and host and internet resolve each other's.
        machine.send(ALLOWED["arp for the gateway"])
        for frame in THROUGH.values():
            machine.send(frame)
        yield captures
    finally:
        captures.close()


def send(site: tap.Site, machine: tap.Machine, what: Forbidden) -> None:
    if not what.is_from_outside:
        machine.send(what.sent)
        return
    site.internet.call(lambda: _from_outside(what.sent))


def _from_outside(packet: bytes) -> None:
    is_ip4 = packet[0] >> 4 == 4
    family = socket.AF_INET if is_ip4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(packet, (tap.VM4 if is_ip4 else tap.VM6, 0))


def _is_of(what: Forbidden, record: Record) -> bool:
    return (record.rule, what.protocol) in {
        (what.rule, record.protocol),
        (what.rule, record.ethertype),
    }


async def test_forbidden_packets_of_a_vm_are_refused_and_logged(
    site: tap.Site, machine: tap.Machine, captures: Captures
) -> None:
    unlogged, wrong, passed = [], [], {}
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        for where in ("link", "host", "internet"):
            captures.captured(where)
        for what in FORBIDDEN:
            send(site, machine, what)
            found = await until_found(source, partial(_is_of, what))
            records = [record for record in found if _is_of(what, record)]
            if not records:
                unlogged.append(what.name)
            if any(record.sandbox != _NAME or record.uid is not None for record in records):
                wrong.append(what.name)
            if what.is_from_outside:
                inside = what.sent[20 if what.sent[0] >> 4 == 4 else 40 :]
                got = [frame for frame in machine.received if inside in frame]
            else:
                mac = what.sent[6:12].hex(":")
                wrong += [what.name for record in records if record.mac_source != mac]
                # The host and the internet also exchange packets with each other.
                beyond = captures.captured("host") + captures.captured("internet")
                got = [packet for packet in beyond if PAYLOAD in packet]
                if what in LINK:
                    got += captures.captured("link")
            if got:
                passed[what.name] = got
    assert len(FORBIDDEN) >= 30
    assert not unlogged
    assert not wrong
    assert not passed


async def test_ordinary_packets_of_a_vm_pass(
    site: tap.Site, machine: tap.Machine, captures: Captures
) -> None:
    """This shows that the fence refuses a forbidden packet only for its forbidden property."""
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        captures.captured("link")
        for frame in (*ALLOWED.values(), *THROUGH.values()):
            machine.send(frame)
            assert captures.captured("link")
        machine.send(FORBIDDEN[0].sent)
        found = await until_found(source, lambda record: record.rule == "vm-link")
        assert [record.ethertype for record in found] == [0x88B5]
