"""What the fence round a VM refuses on its host, and that each refusal is told."""

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
#: Whatever a host has, as a container's published port and a cluster's service.
PUBLISHED = f"""
table ip published {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {tap.GATEWAY4} tcp dport 8080 dnat to {INTERNET4}:80
        ip daddr 10.96.0.1 tcp dport 443 dnat to {INTERNET4}:443
    }}
}}
"""


class Ears:
    """What hears a packet that got further: on the host's link behind the fence's first hook, on
    the host's sockets, and on the internet.
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

    def heard(self, where: str) -> list[bytes]:
        """What has come there until now."""
        return [packet for ear in getattr(self, f"_{where}") for packet in _drained(ear)]

    def close(self) -> None:
        for ear in self._link + self._host + self._internet:
            ear.close()


def _packet_socket(kind: int, device: str) -> socket.socket:
    # Of one ethertype it hears what the ingress hook let pass, of all (3) what was there before.
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
def ears(site: tap.Site, machine: tap.Machine, state: StateDirectory) -> Iterator[Ears]:
    """The VM is fenced, on a host that publishes something; whatever there is to hear is heard."""
    conftest.load(site.host, PUBLISHED)
    tap.routes_back(site)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    ears = Ears(site)
    try:
        # Whose link address it is, and the host's and the internet's about each other.
        machine.send(ALLOWED["arp for the gateway"])
        for frame in THROUGH.values():
            machine.send(frame)
        yield ears
    finally:
        ears.close()


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


async def test_what_a_vm_has_no_business_sending_is_refused_and_told(
    site: tap.Site, machine: tap.Machine, ears: Ears
) -> None:
    untold, wrong, heard = [], [], {}
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        for where in ("link", "host", "internet"):
            ears.heard(where)
        for what in FORBIDDEN:
            send(site, machine, what)
            found = await until_found(source, partial(_is_of, what))
            told = [record for record in found if _is_of(what, record)]
            if not told:
                untold.append(what.name)
            if any(record.sandbox != _NAME or record.uid is not None for record in told):
                wrong.append(what.name)
            if what.is_from_outside:
                inside = what.sent[20 if what.sent[0] >> 4 == 4 else 40 :]
                got = [frame for frame in machine.received if inside in frame]
            else:
                mac = what.sent[6:12].hex(":")
                wrong += [what.name for record in told if record.mac_source != mac]
                # The host and the internet have something to tell each other, too.
                beyond = ears.heard("host") + ears.heard("internet")
                got = [packet for packet in beyond if PAYLOAD in packet]
                if what in LINK:
                    got += ears.heard("link")
            if got:
                heard[what.name] = got
    assert len(FORBIDDEN) >= 30
    assert not untold
    assert not wrong
    assert not heard


async def test_what_a_vm_needs_passes(site: tap.Site, machine: tap.Machine, ears: Ears) -> None:
    """So what is refused above is refused for what is wrong with it, and not for the rest."""
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        ears.heard("link")
        for frame in (*ALLOWED.values(), *THROUGH.values()):
            machine.send(frame)
            assert ears.heard("link")
        machine.send(FORBIDDEN[0].sent)
        found = await until_found(source, lambda record: record.rule == "vm-link")
        assert [record.ethertype for record in found] == [0x88B5]
