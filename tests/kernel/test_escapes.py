"""Escapes from a common ruleset: the fence refuses and logs each of them."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.flow import KINDS, Key
from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, INTERNET4, PROXY_PORT, SANDBOX4, SANDBOX6
from ocsf_nft.sources.nflog import Nflog
from tests.flows.kernel_model import keys
from tests.kernel import accounts, conftest, far_side, packets, xdp
from tests.kernel.escapes import ESCAPES, Escape
from tests.kernel.packets import ETH_IP, ETH_IP6
from tests.kernel.reading import refused_at, rest, until_found

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.flow import Reading
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_LOG_BUDGET = 4  #: Packets that any flow may log at once (rules/accounting.nft).


async def test_each_escape_is_refused_logged_and_counted_once(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    installed = installer.install(spec, lab.sandbox_namespace, state, "nflog")
    missed: dict[str, str] = {}
    records: list[Record] = []
    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        with Counters(installed) as counters, far_side.watch(lab) as far:
            far.strays()
            began, _ = await _at_rest(source, counters)
            for escape in ESCAPES:

                def is_expected(record: Record, escape: Escape = escape) -> bool:
                    protocol = record.ethertype if record.protocol is None else record.protocol
                    expected = escape.rule, escape.protocol, escape.is_owned
                    return (record.rule, protocol, record.uid is not None) == expected

                if not escape.is_owned:
                    conftest.fresh_budgets(lab.sandbox_namespace)
                lab.sandbox_namespace.call(escape.attempt)
                found = await until_found(source, is_expected)
                records += found
                if not any(map(is_expected, found)):
                    missed[escape.name] = "not logged"
                if far.strays():
                    missed[escape.name] = "got out"
            ended, found = await _at_rest(source, counters)
            records += found
    assert not missed
    for rule, reading in ended.rules.items():
        by_kind = accounts.elements_of(reading).values()
        elements = [element for found in by_kind for element in found]
        assert reading.overflow.packets == 0
        assert sum(element.packets for element in elements) == reading.refused.packets, rule
    before, after = _counted(began), _counted(ended)
    # A record's packet was counted by the element of the first of its keys that has an element.
    logged = Counter((record.rule, _element(record, after)) for record in records)
    assert logged.keys() <= after.keys()
    for key, total in after.items():
        # A flow's packets are all logged up to its budget, and not all beyond it.
        at_least = min(total, _LOG_BUDGET) - min(before[key], _LOG_BUDGET)
        assert at_least <= logged[key] <= total - before[key], key


async def _at_rest(source: Nflog, counters: Counters) -> tuple[Reading, list[Record]]:
    """Return a counter reading of which all packets were read, and the records read until then.

    The kernel sends packets of its own at any time. A packet may be counted before the reading and
    its record read after it, or the other way round.
    """
    found: list[Record] = []
    while True:
        reading = counters.read()
        more = await rest(source)
        if not more:
            return reading, found
        found += more


def _element(record: Record, counted: Mapping[tuple[str, Key], int]) -> Key | None:
    """Return the first of a record's keys that was counted, after completing the record."""
    if record.protocol in {33, 132} and record.destination_port is None:
        # Truncated after the ports: nf_tables reads them, but the logger does not.
        port = int.from_bytes(packets.PAYLOAD[2:4], "big")
        record = dataclasses.replace(record, destination_port=port)
    if record.rule == "link" and record.protocol is None:
        # nf_tables uses the protocol that the frame's socket announces.
        announced = int(record.origin.raw.partition(" protocol=")[2][:4], 16)
        if (record.ethertype, announced) == (0x88B5, ETH_IP):
            record = dataclasses.replace(
                record, protocol=6, destination=GATEWAY4, destination_port=PROXY_PORT
            )
        record = dataclasses.replace(record, ethertype=announced)
    return next((key for key in keys(record) if (record.rule, key) in counted), None)


def _counted(reading: Reading) -> Counter[tuple[str, Key]]:
    return Counter(
        {
            (rule, Key(kind, element.data)): element.packets
            for rule, of_rule in reading.rules.items()
            for kind in KINDS
            for element in accounts.elements_of(of_rule)[kind]
        }
    )


def test_each_escape_leaves_a_sandbox_without_a_fence(lab: Lab) -> None:
    held: list[str] = []
    with far_side.watch(lab) as far:

        def is_out(escape: Escape) -> bool:
            # The kernel also sends frames of its own, which do not count.
            return any(escape.protocol in far_side.protocols(stray) for stray in far.strays())

        for escape in ESCAPES:
            time.sleep(0.002)
            far.strays()
            lab.sandbox_namespace.call(escape.attempt)
            if not _eventually(partial(is_out, escape)):
                held.append(escape.name)
    assert not held


def _eventually(check: Callable[[], object]) -> bool:
    end = time.monotonic() + 20
    while True:
        is_last = time.monotonic() > end  # look once more after the wait
        if check():
            return True
        if is_last:
            return False
        time.sleep(0.002)


async def test_source_route_over_the_proxy_is_refused(fenced: Lab) -> None:
    def connect() -> None:
        with socket.socket() as sock:
            hop, end = socket.inet_aton(GATEWAY4), socket.inet_aton(INTERNET4)
            sock.setsockopt(
                socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\x0b\x04" + hop + end + b"\0"
            )
            sock.settimeout(1)
            sock.connect((INTERNET4, PROXY_PORT))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(OSError, match=r"refused|timed out"):
            fenced.sandbox_namespace.call(connect)
        assert await refused_at(source, "egress", 6)


@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum over the destination"])
@pytest.mark.parametrize(
    ("kind", "packet", "destination"),
    [
        (ETH_IP, packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, 2)), 30),
        (ETH_IP6, packets.ip6(SANDBOX6, GATEWAY6, 6, packets.tcp(PROXY_PORT, 2)), 38),
    ],
    ids=["ip4", "ip6"],
)
async def test_raw_frame_to_the_proxy_is_refused(
    fenced: Lab, kind: int, packet: bytes, destination: int, checksum: bool
) -> None:
    """With PACKET_VNET_HDR a device may write a checksum over the destination, after every hook."""
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    # struct virtio_net_hdr: NEEDS_CSUM, no segmentation, checksum from the destination on
    header = struct.pack(
        "=BBHHHH", 1 if checksum else 0, 0, 0, 0, destination if checksum else 0, 0
    )

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("sb0", 0))
            sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            frame = packets.frame(gateway, sock.getsockname()[4], kind, packet)
            with contextlib.suppress(OSError):
                sock.sendto(header + frame, ("sb0", kind))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        fenced.sandbox_namespace.call(send)
        assert await refused_at(source, "link", 6)


def _xdp_frame(fenced: Lab) -> None:
    frame = packets.frame(
        bytes.fromhex(GATEWAY_MAC.replace(":", "")), b"\x02\0\0\0\0\x02", 0x88B5, b"by af_xdp"
    )
    fenced.sandbox_namespace.call(lambda: xdp.send("sb0", frame))


def test_af_xdp_frame_bypasses_every_hook_inside(fenced: Lab) -> None:
    with far_side.watch(fenced) as far:
        _xdp_frame(fenced)
        assert _eventually(lambda: any(b"by af_xdp" in stray for stray in far.strays()))
