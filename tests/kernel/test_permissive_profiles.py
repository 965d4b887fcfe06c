"""Permissive fences of a pod and of a VM: they refuse nothing and report each attempt once."""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.lab import GATEWAY_MAC
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import conftest, far_side, packets, sidecar, tap, xdp
from tests.kernel.escapes import ESCAPES
from tests.kernel.reading import rest, until_found
from tests.kernel.test_permissive import _disable_router_solicitations, _eventually
from tests.kernel.test_tap_refused import PUBLISHED, Captures, _is_of, send
from tests.kernel.vm_escapes import ALLOWED, FORBIDDEN, LINK, THROUGH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

#: Packets that the internet answers; connection tracking knows no flow of such an answer.
_ANSWERED = frozenset({"from the network's address", "an answer to nothing"})


def _totals(counters: Counters) -> Counter[str]:
    reading = counters.read()
    return Counter(
        {name.partition(":")[0]: each.refused.packets for name, each in reading.rules.items()}
    )


async def test_permissive_pod_fence_allows_and_logs_each_escape_once(
    lab: Lab, state: StateDirectory
) -> None:
    lab.sandbox_namespace.call(_disable_router_solicitations)
    requested = dataclasses.replace(sidecar.SPEC, is_permissive=True)
    installed = installer.install(requested, lab.sandbox_namespace, state, "nflog")
    wrong: dict[str, Any] = {}
    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        with Counters(installed) as counters, far_side.watch(lab) as far:
            await rest(source)
            for escape in ESCAPES:

                def is_expected(record: Record, escape: Any = escape) -> bool:
                    protocol = record.ethertype if record.protocol is None else record.protocol
                    return (record.rule, protocol) == (escape.rule, escape.protocol)

                far.strays()
                before = _totals(counters)
                if not escape.is_owned:
                    conftest.fresh_budgets(lab.sandbox_namespace)
                lab.sandbox_namespace.call(escape.attempt)
                found = await until_found(source, is_expected)
                if not any(map(is_expected, found)) or {each.verdict for each in found} != {
                    "permit"
                }:
                    wrong[escape.name] = "not logged"
                if not _eventually(far, escape.protocol):
                    wrong[escape.name] = "held back"
                # The link's rule counts only packets that no other rule has counted.
                if (_totals(counters) - before)["link"] != (escape.rule == "link"):
                    wrong[escape.name] = _totals(counters) - before
    assert not wrong


@pytest.fixture
def site() -> Iterator[tap.Site]:
    with tap.site() as made:
        yield made


async def test_permissive_vm_fence_allows_and_logs_each_packet_once(
    site: tap.Site, state: StateDirectory
) -> None:
    conftest.load(site.host, PUBLISHED)
    tap.routes_back(site)
    with tap.silent_machine(site) as machine:
        requested = dataclasses.replace(tap.spec("vm-7"), is_permissive=True)
        installed = installer.install(requested, site.host, state, "nflog")
        captures = Captures(site)
        try:
            machine.send(ALLOWED["arp for the gateway"])
            for frame in THROUGH.values():
                machine.send(frame)
            wrong: dict[str, Any] = {}
            async with Nflog(site.host, DEFAULT_GROUP) as source:
                with Counters(installed) as counters:
                    await rest(source)
                    for what in FORBIDDEN:
                        captures.captured("link")
                        before = _totals(counters)
                        send(site, machine, what)
                        found = await until_found(source, partial(_is_of, what))
                        grew = _totals(counters) - before
                        if not any(_is_of(what, record) for record in found):
                            wrong[what.name] = "not logged"
                        if {record.verdict for record in found} != {"permit"}:
                            wrong[what.name] = "other verdict"
                        if what.name in _ANSWERED and what.rule != "vm-ingress":
                            del grew["vm-ingress"]
                        if grew != {what.rule: 1}:
                            wrong[what.name] = grew
                        if what in LINK and not captures.captured("link"):
                            wrong[what.name] = "held back"
        finally:
            captures.close()
    assert not wrong


async def test_frame_that_bypasses_a_permissive_fence_passes_its_guard_and_is_logged(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    requested = dataclasses.replace(spec, is_permissive=True, guard_device=lab.gateway_device)
    # The guard is active in the namespace of the installer.
    lab.gateway_namespace.call(
        lambda: installer.install(requested, lab.sandbox_namespace, state, "nflog")
    )
    mac = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    frame = packets.frame(mac, b"\2\0\0\0\1\7", 0x88B5, b"by af_xdp")

    def is_expected(record: Record) -> bool:
        return (record.rule, record.ethertype, record.verdict) == ("guard", 0x88B5, "permit")

    def open_capture() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        sock.bind((lab.gateway_device, 0x88B5))
        sock.settimeout(5)
        return sock

    async with Nflog(lab.gateway_namespace, DEFAULT_GROUP) as source:
        with lab.gateway_namespace.call(open_capture) as behind:
            lab.sandbox_namespace.call(lambda: xdp.send(lab.sandbox_device, frame))
            assert any(map(is_expected, await until_found(source, is_expected)))
            # A socket of one ethertype receives only frames that the ingress hook has accepted.
            assert b"by af_xdp" in behind.recv(200)
