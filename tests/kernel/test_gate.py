"""Last gate of a fence (tcx), with its policy and without any rule of nftables."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import check, netlink, rtnetlink
from ocsf_nft.check import weakening_settings
from ocsf_nft.fence import links
from ocsf_nft.fence.gate import Gate, Uplink
from ocsf_nft.fence.gate_policy import gate_policy
from ocsf_nft.fence.surroundings import programs
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
    ip,
    new_namespace,
)
from tests.kernel import command, far_side, headers, packets
from tests.kernel.conftest import SANDBOX
from tests.kernel.outcomes import send_frame
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6
from tests.kernel.serving import sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_MAC: Final = b"\x02\0\0\0\0\x02"
_GATEWAY: Final = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
_PROXIED4: Final = headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT)
_PROXIED6: Final = headers.tcp(SANDBOX6, GATEWAY6, PROXY_PORT)


@pytest.fixture
def uplink(lab: Lab) -> Uplink:
    def find() -> Uplink:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
            cookie = netlink.namespace_cookie(sock)
        (link,) = (each for each in rtnetlink.links() if each.name == lab.sandbox_device)
        return Uplink(cookie, link.ifindex)

    ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "address", _MAC.hex(":"))
    return lab.sandbox_namespace.call(find)


@pytest.fixture
def gate(lab: Lab, spec: FenceSpec, uplink: Uplink) -> Iterator[Gate]:
    around = links.survey(lab.sandbox_namespace, [each.address for each in spec.allowed])
    made = Gate()
    with contextlib.closing(made), lab.sandbox_namespace.call(socket.socket) as inside:
        made.attach(inside, [uplink], gate_policy((spec, around)))
        yield made


def _send(lab: Lab, kind: int, payload: bytes, *, to: bytes = _GATEWAY, mac: bytes = _MAC) -> None:
    frame = to + mac + kind.to_bytes(2, "big") + payload
    work = partial(send_frame, frame.ljust(60, b"\0"), lab.sandbox_device)
    lab.sandbox_namespace.call(work)


def test_gate_lets_only_the_policy_out(lab: Lab, gate: Gate, uplink: Uplink) -> None:
    about = partial(headers.neighbour, SANDBOX6, target=GATEWAY6)
    passing = [
        (ETH_IP, _PROXIED4),
        (ETH_IP6, _PROXIED6),
        (ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, _MAC)),
        (ETH_IP6, about(GATEWAY6)),
    ]
    refused = [
        (0x88B5, bytes(46)),
        (ETH_IP, headers.tcp(SANDBOX4, INTERNET4, PROXY_PORT)),
        (ETH_IP, headers.tcp(SANDBOX4, GATEWAY4, 443)),
        (ETH_IP, headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT)),
        (ETH_IP, headers.tcp("10.200.0.9", GATEWAY4, PROXY_PORT)),
        (ETH_IP, headers.with_options4(_PROXIED4)),
        (ETH_IP, headers.with_flags4(_PROXIED4, 0x2000)),
        (ETH_IP6, headers.tcp(SANDBOX6, INTERNET6, PROXY_PORT)),
        (ETH_IP6, headers.tcp("fd00:200::9", GATEWAY6, PROXY_PORT)),
        (ETH_IP6, headers.with_extension6(_PROXIED6)),
        (ETH_IP6, about(INTERNET6)),
        (ETH_IP6, about(GATEWAY6, target=INTERNET6)),
        (ETH_IP6, about(GATEWAY6, hop_limit=64)),
        (ETH_IP6, about(GATEWAY6, options=bytes(17))),
        (ETH_ARP, packets.arp(SANDBOX4, "10.200.0.77", _MAC)),
        (ETH_ARP, packets.arp("10.200.0.9", GATEWAY4, _MAC)),
        (ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, b"\x02\0\0\0\0\x09")),
    ]
    with far_side.watch(lab) as far:
        far.frames()
        for kind, payload in passing:
            _send(lab, kind, payload)
        before = gate.stopped(uplink).packets
        for kind, payload in refused:
            _send(lab, kind, payload)
        _send(lab, ETH_IP, _PROXIED4, to=b"\xff" * 6)
        _send(lab, ETH_IP, _PROXIED4, mac=b"\x02\0\0\0\0\x09")
        stopped = gate.stopped(uplink)
        assert stopped.packets - before == len(refused) + 2
        arrived = far.frames()
    for kind, payload in passing:
        assert any(frame[12:].startswith(kind.to_bytes(2, "big") + payload) for frame in arrived)
    assert not [frame for frame in arrived for _, payload in refused if payload in frame]


def test_check_does_not_report_the_gate_of_a_fence(
    fenced: Lab, gate: Gate, state: StateDirectory
) -> None:
    scope = check.check_scope(fenced.sandbox_namespace, device=None, port=0)

    def found() -> list[str]:
        return [each.meaning for each in weakening_settings.findings(scope, state)]

    assert [each for each in found() if "a BPF program of tcx egress" in each]
    state.store_gate(SANDBOX, gate.programs)
    assert found() == []


def test_gate_stops_what_tc_redirects_to_the_uplink(lab: Lab, gate: Gate, uplink: Uplink) -> None:
    for line in (
        "qdisc add dev lo clsact",
        (
            "filter add dev lo egress protocol all prio 1 u32 match u8 0 0 "
            f"action mirred egress redirect dev {lab.sandbox_device}"
        ),
    ):
        subprocess.run(["tc", "-n", lab.sandbox, *line.split()], check=True)

    def send() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.sendto(b"redirected", ("127.0.0.9", 9))

    with far_side.watch(lab) as far:
        lab.sandbox_namespace.call(send)
        assert gate.stopped(uplink).packets >= 1  # the kernel may send its own too
        assert not [each for each in far.frames() if b"redirected" in each]
        gate.detach(uplink)
        lab.sandbox_namespace.call(send)
        assert [each for each in far.frames() if b"redirected" in each]


@pytest.mark.usefixtures("gate")
def test_gate_stops_an_uplink_that_was_moved(lab: Lab) -> None:
    with new_namespace(f"{lab.sandbox}-child") as child, far_side.watch(lab) as far:
        ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "netns", f"{lab.sandbox}-child")
        ip("-n", f"{lab.sandbox}-child", "link", "set", lab.sandbox_device, "up")
        far.frames()
        frame = _GATEWAY + _MAC + b"\x08\0" + _PROXIED4
        child.call(partial(send_frame, frame.ljust(60, b"\0"), lab.sandbox_device))
        assert not [each for each in far.frames() if _PROXIED4 in each]


def test_gate_lets_neighbours_in_an_exception_be_resolved(
    lab: Lab, gate: Gate, uplink: Uplink, spec: FenceSpec
) -> None:
    networks = exception("udp:10.200.0.64/28:53"), exception("udp:[fd00:200::1:0/112]:53")
    wide = replace(spec, exceptions=networks)
    around = links.survey(
        lab.sandbox_namespace,
        [each.address for each in wide.allowed],
        [each.network for each in wide.ranges],
    )
    gate.set_policy(uplink, gate_policy((wide, around)))
    inside = "fd00:200::1:77"
    passing = [
        (ETH_ARP, packets.arp(SANDBOX4, "10.200.0.77", _MAC)),
        (ETH_IP6, headers.neighbour(SANDBOX6, "ff02::1:ff01:77", target=inside)),
        (ETH_IP6, headers.neighbour(SANDBOX6, inside, target=inside)),
    ]
    refused = [
        (ETH_ARP, packets.arp(SANDBOX4, "10.200.0.80", _MAC)),
        (ETH_IP6, headers.neighbour(SANDBOX6, "ff02::1:ff02:77", target="fd00:200::2:77")),
    ]
    with far_side.watch(lab) as far:
        for kind, payload in passing + refused:
            _send(lab, kind, payload)
        arrived = far.frames()
    for _, payload in passing:
        assert any(payload in frame for frame in arrived)
    assert not [frame for frame in arrived for _, payload in refused if payload in frame]


def _send_with_header(lab: Lab, kind: int, payload: bytes, header: bytes) -> None:
    """Send a frame with a ``struct virtio_net_hdr`` before it (packet(7): PACKET_VNET_HDR)."""
    frame = header + _GATEWAY + _MAC + kind.to_bytes(2, "big") + payload

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((lab.sandbox_device, 0))
            sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            with contextlib.suppress(OSError):  # the gate has stopped it
                sock.send(frame)

    lab.sandbox_namespace.call(send)


def _checksum(start: int, offset: int) -> bytes:
    return struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset)


def test_gate_stops_a_checksum_outside_its_own_place(
    lab: Lab, gate: Gate, uplink: Uplink, spec: FenceSpec
) -> None:
    around = links.survey(lab.sandbox_namespace, [each.address for each in spec.allowed])
    allowed = tuple(
        exception(f"udp:{address}:{PROXY_PORT}") for address in (GATEWAY4, f"[{GATEWAY6}]")
    )
    gate.set_policy(uplink, gate_policy((replace(spec, exceptions=allowed), around)))
    udp4 = headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT)
    udp6 = headers.udp(SANDBOX6, GATEWAY6, PROXY_PORT)
    long = headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT, packets.ACK) + bytes(3000)
    long = long[:2] + len(long).to_bytes(2, "big") + long[4:]
    passing = [
        (ETH_IP, _PROXIED4, _checksum(34, 16)),
        (ETH_IP6, _PROXIED6, _checksum(54, 16)),
        (ETH_IP, udp4, _checksum(34, 6)),
        (ETH_IP6, udp6, _checksum(54, 6)),
        (ETH_IP, udp4, _checksum(42, 2)),  # in the payload, as that of a tunnel's packet
        (ETH_IP, long, struct.pack("=BBHHHH", 1, 1, 54, 1000, 34, 16)),
    ]
    refused = [
        *((ETH_IP, _PROXIED4, _checksum(start, offset)) for start, offset in (
            (34, 2), (34, 6), (34, 18), (30, 0), (26, 6), (36, 16), (42, 2),
        )),
        *((ETH_IP6, _PROXIED6, _checksum(start, offset)) for start, offset in (
            (54, 2), (54, 6), (52, 0), (46, 2), (56, 16),
        )),
        (ETH_IP, udp4, _checksum(34, 2)),
        (ETH_IP, udp4, _checksum(38, 0)),
        (ETH_IP, udp4, _checksum(34, 4)),
        (ETH_IP6, udp6, _checksum(50, 4)),
        (ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, _MAC), _checksum(36, 2)),
        (ETH_IP6, headers.neighbour(SANDBOX6, GATEWAY6, target=GATEWAY6), _checksum(54, 8)),
    ]  # fmt: skip
    with far_side.watch(lab) as far:
        far.frames()
        before = gate.stopped(uplink).packets
        for each in passing:
            _send_with_header(lab, *each)
        assert gate.stopped(uplink).packets == before
        assert len(far.frames()) >= len(passing)
        for each in refused:
            before = gate.stopped(uplink).packets
            _send_with_header(lab, *each)
            assert gate.stopped(uplink).packets == before + 1, each
        assert not [each for each in far.frames() if each[6:12] == _MAC]


@pytest.mark.parametrize("version", [4, 6])
def test_gate_judges_the_sources_of_each_version_alone(
    lab: Lab, gate: Gate, uplink: Uplink, spec: FenceSpec, version: int
) -> None:
    """An address by a router's advertisement comes seconds after the other one."""
    around = links.survey(lab.sandbox_namespace, [each.address for each in spec.allowed])
    known = tuple(each for each in around.addresses if each.version == version)
    gate.set_policy(uplink, gate_policy((spec, replace(around, addresses=known))))
    sources = {
        4: headers.tcp("10.200.0.9", GATEWAY4, PROXY_PORT),
        6: headers.tcp("fd00:200::9", GATEWAY6, PROXY_PORT),
    }
    with far_side.watch(lab) as far:
        for kind, payload in (
            *((ETH_IP, _PROXIED4), (ETH_IP6, _PROXIED6)),
            *((ETH_IP, sources[4]), (ETH_IP6, sources[6])),
        ):
            _send(lab, kind, payload)
        arrived = far.frames()
    for payload in (_PROXIED4, _PROXIED6, sources[10 - version]):
        assert any(payload in frame for frame in arrived)
    assert not any(sources[version] in frame for frame in arrived)


def test_gate_follows_a_changed_policy(
    lab: Lab, gate: Gate, uplink: Uplink, spec: FenceSpec
) -> None:
    around = links.survey(lab.sandbox_namespace, [each.address for each in spec.allowed])
    dns = replace(spec, exceptions=(exception("udp:203.0.113.0/28:53-54"),))
    frames = headers.udp(SANDBOX4, INTERNET4, 54), headers.udp(SANDBOX4, INTERNET4, 55)
    with far_side.watch(lab) as far:

        def arrived() -> list[bool]:
            for frame in frames:
                _send(lab, ETH_IP, frame)
            found = far.frames()
            return [any(frame in each for each in found) for frame in frames]

        assert arrived() == [False, False]
        gate.set_policy(uplink, gate_policy((spec, around), (dns, around)))
        assert arrived() == [True, False]
        gate.set_policy(uplink, gate_policy((replace(spec, is_permissive=True), around)))
        assert arrived() == [True, True]
        gate.set_policy(uplink, gate_policy((spec, around)))
        assert arrived() == [False, False]
        gate.detach(uplink)
        assert arrived() == [True, True]


@pytest.mark.parametrize("number", [6, 7, 20])
def test_gate_allows_each_of_many_destinations(
    lab: Lab, gate: Gate, uplink: Uplink, spec: FenceSpec, number: int
) -> None:
    """The first eight, two of which are the proxies, are compared in another loop."""
    around = links.survey(lab.sandbox_namespace, [each.address for each in spec.allowed])
    allowed = tuple(exception(f"udp:203.0.113.{each}:53") for each in range(1, number + 1))
    gate.set_policy(uplink, gate_policy((replace(spec, exceptions=allowed), around)))
    frames = [headers.udp(SANDBOX4, f"203.0.113.{each}", 53) for each in range(number + 2)]
    with far_side.watch(lab) as far:
        for frame in frames:
            _send(lab, ETH_IP, frame)
        found = far.frames()
    assert [any(frame in each for each in found) for frame in frames] == [
        False, *[True] * number, False
    ]  # fmt: skip


def _has_gate(lab: Lab, name: str) -> bool:
    def find() -> bool:
        (link,) = (each for each in rtnetlink.links() if each.name == name)
        return bool([*programs.tcx(link.ifindex, link.name)])

    return lab.sandbox_namespace.call(find)


async def test_run_attaches_the_gate_when_a_route_shows_the_uplink(
    lab: Lab, tmp_path: Path
) -> None:
    ip("-n", lab.sandbox, "address", "flush", "dev", lab.sandbox_device)
    ip("-n", lab.sandbox, "-6", "route", "flush", "dev", lab.sandbox_device)
    config = sandbox("agent", netns=lab.sandbox, proxy=[f"{GATEWAY4}:{PROXY_PORT}"])
    async with serving(tmp_path, config):
        assert not _has_gate(lab, lab.sandbox_device)
        ip("-n", lab.sandbox, "address", "add", f"{SANDBOX4}/24", "dev", lab.sandbox_device)
        await until(lambda: _has_gate(lab, lab.sandbox_device))


async def test_run_moves_the_gate_to_the_uplink_of_a_new_installation(
    lab: Lab, tmp_path: Path
) -> None:
    proxy = f"{GATEWAY4}:{PROXY_PORT}"
    config = sandbox("agent", netns=lab.sandbox, proxy=[proxy])
    async with serving(tmp_path, config):
        assert _has_gate(lab, lab.sandbox_device)
        ip("-n", lab.sandbox, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        ip("-n", lab.sandbox, "link", "set", "v0", "up")
        ip("-n", lab.sandbox, "route", "replace", f"{GATEWAY4}/32", "dev", "v0", "src", SANDBOX4)
        install = ("install", "--sandbox", "agent", "--netns", lab.sandbox, "--proxy", proxy)
        done = await asyncio.to_thread(command.run, *install, "--state-dir", str(tmp_path))
        assert done.code == 0, done.stderr
        await until(lambda: _has_gate(lab, "v0") and not _has_gate(lab, lab.sandbox_device))
