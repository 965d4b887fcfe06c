"""Guard on the host's side of a sandbox's veth pair, for frames that pass no hook inside it."""

from __future__ import annotations

import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.fence import installer, verification
from ocsf_nft.fence.spec import DEFAULT_GROUP
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
)
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import command, conftest, headers, packets, xdp
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6
from tests.kernel.reading import until_found

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_TO_PROXY4 = packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, 2))
_TO_PROXY6 = packets.ip6(SANDBOX6, GATEWAY6, 6, packets.tcp(PROXY_PORT, 2))
_MAC = b"\x02\0\0\0\0\x02"


def _option4(packet: bytes) -> bytes:
    """Return the packet with four bytes of IPv4 options, all of them no operation."""
    length = struct.pack("!H", len(packet) + 4)
    return b"\x46" + packet[1:2] + length + packet[4:20] + b"\1\1\1\0" + packet[20:]


def _vlan(inner: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 5, inner) + payload


def _solicit(tail: bytes = b"", to: str = GATEWAY6, hop_limit: int = 255) -> bytes:
    return headers.neighbour(SANDBOX6, to, target=GATEWAY6, options=tail, hop_limit=hop_limit)


#: Frames that AF_XDP sends past the fence inside: ethertype and payload.
_FRAMES = {
    "ethertype 88b5": (0x88B5, b"by af_xdp"),
    "ip to the internet": (
        ETH_IP,
        packets.ip4(SANDBOX4, INTERNET4, 6, packets.tcp(PROXY_PORT, 2)),
    ),
    "ip6 to the internet": (
        ETH_IP6,
        packets.ip6(SANDBOX6, INTERNET6, 6, packets.tcp(PROXY_PORT, 2)),
    ),
    "another port of the proxy": (
        ETH_IP,
        packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(443, 2)),
    ),
    "udp to the proxy": (ETH_IP, packets.ip4(SANDBOX4, GATEWAY4, 17, packets.udp(PROXY_PORT))),
    "vlan to the proxy": (0x8100, _vlan(ETH_IP, _TO_PROXY4)),
    "vlan to the proxy over ip6": (0x8100, _vlan(ETH_IP6, _TO_PROXY6)),
    "802.1ad to the proxy": (0x88A8, _vlan(ETH_IP, _TO_PROXY4)),
    "qinq to the proxy": (0x88A8, _vlan(0x8100, _vlan(ETH_IP, _TO_PROXY4))),
    "vlan in a vlan to the proxy": (0x8100, _vlan(0x8100, _vlan(ETH_IP, _TO_PROXY4))),
    "vlan with arp for the proxy": (0x8100, _vlan(ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, _MAC))),
    "late fragment that resembles the proxy's port": (
        ETH_IP,
        packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, 16), fragment=4),
    ),
    "first fragment to the proxy": (
        ETH_IP,
        packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, 2), fragment=0x2000),
    ),
    "ip options to the proxy": (ETH_IP, _option4(_TO_PROXY4)),
    "ip6 destination options to the proxy": (
        ETH_IP6,
        packets.ip6(SANDBOX6, GATEWAY6, 60, b"\6\0\1\4\0\0\0\0" + _TO_PROXY6[40:]),
    ),
    "neighbour solicitation with a long tail": (ETH_IP6, _solicit(bytes(64))),
    "neighbour solicitation longer than its length field": (ETH_IP6, _solicit() + bytes(1000)),
    "neighbour solicitation shorter than its length field": (ETH_IP6, _solicit(bytes(64))[:80]),
    "neighbour solicitation that could be routed": (ETH_IP6, _solicit(hop_limit=64)),
    "neighbour solicitation with a code": (ETH_IP6, _solicit()[:41] + b"\1" + _solicit()[42:]),
    "neighbour solicitation to the internet": (ETH_IP6, _solicit(to=INTERNET6)),
    "arp for a stranger": (ETH_ARP, packets.arp(SANDBOX4, "10.200.0.77", _MAC)),
    "arp with a long tail": (ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, _MAC, bytes(64))),
}


@pytest.fixture
def guarded(lab: Lab, spec: FenceSpec, state: StateDirectory) -> Lab:
    """Fence the lab's sandbox, and guard its device in the gateway's namespace.

    The guard is in the namespace of the installer, which is the gateway's namespace here.
    """
    guarded_spec = type(spec)(
        sandbox=spec.sandbox, proxies=spec.proxies, guard_device=lab.gateway_device
    )
    ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "address", _MAC.hex(":"))
    lab.gateway_namespace.call(
        lambda: installer.install(guarded_spec, lab.sandbox_namespace, state, "nflog")
    )
    return lab


def _send(lab: Lab, kind: int, payload: bytes, source: bytes = _MAC) -> None:
    frame = packets.frame(bytes.fromhex(GATEWAY_MAC.replace(":", "")), source, kind, payload)
    lab.sandbox_namespace.call(lambda: xdp.send(lab.sandbox_device, frame))


async def test_guard_refuses_and_logs_frames_that_bypass_the_fence(guarded: Lab) -> None:
    missed: list[str] = []
    async with Nflog(guarded.gateway_namespace, DEFAULT_GROUP) as source:

        def is_record_of_frame(record: Record) -> bool:
            return (record.rule, record.mac_source) == ("guard", _MAC.hex(":"))

        for name, (kind, payload) in _FRAMES.items():
            # Each record is read before the next frame is sent.
            _send(guarded, kind, payload)
            if not any(map(is_record_of_frame, await until_found(source, is_record_of_frame))):
                missed.append(name)
    assert not missed


async def test_guard_accepts_packets_that_the_proxy_needs(guarded: Lab) -> None:
    """The frames above are refused because of their errors, and not for another reason."""
    async with Nflog(guarded.gateway_namespace, DEFAULT_GROUP) as source:
        for kind, payload in (
            (ETH_IP, _TO_PROXY4),
            (ETH_IP6, _TO_PROXY6),
            (ETH_IP6, _solicit()),
            (ETH_ARP, packets.arp(SANDBOX4, GATEWAY4, _MAC)),
            (0x88B5, b"by af_xdp"),
        ):
            _send(guarded, kind, payload)
        found = await until_found(source, lambda record: record.ethertype == 0x88B5)
        assert [record.ethertype for record in found] == [0x88B5]


async def test_guard_on_the_host_stops_af_xdp_and_not_the_proxy(
    guarded: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    async with Nflog(guarded.gateway_namespace, DEFAULT_GROUP) as source:
        _send(guarded, 0x88B5, b"by af_xdp")
        found = await until_found(source, lambda record: record.ethertype == 0x88B5)
        assert [(record.rule, record.in_interface) for record in found] == [("guard", "gw0")]
    with guarded.gateway_namespace.call(lambda: socket.create_server((GATEWAY4, PROXY_PORT))):
        guarded.sandbox_namespace.call(
            lambda: socket.create_connection((GATEWAY4, PROXY_PORT), 2)
        ).close()
    guarded.gateway_namespace.call(lambda: installer.remove(spec.sandbox, state))
    assert (
        guarded.gateway_namespace.call(lambda: verification.verify(spec.sandbox, state)).verdict
        == "absent"
    )


def test_run_reports_packets_that_the_guard_refuses(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    arguments = [
        *("--sandbox", conftest.SANDBOX, "--netns", lab.sandbox),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--state-dir", str(state.path)),
        *("--output", str(output), "--transport", "nflog", "--install"),
        *("--host-guard", lab.gateway_device),
    ]
    with command.running(*arguments, under=("ip", "netns", "exec", lab.gateway)) as running:
        _send(lab, 0x88B5, b"by af_xdp", _MAC)
        end = time.monotonic() + 5
        while b'"guard"' not in output.read_bytes() and time.monotonic() < end:
            time.sleep(0.02)
        code, stderr = running.stop(signal.SIGTERM)
    assert code == 0, stderr
    events = map(orjson.loads, output.read_bytes().splitlines())
    by_guard = [
        event["firewall_rule"]["name"]
        for event in events
        if event["class_uid"] == 4001 and event["src_endpoint"].get("mac") == _MAC.hex(":")
    ]
    assert by_guard == ["guard"]
