"""The guard on the host's side of a sandbox's veth pair, for frames that pass no hook inside it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, PROXY_PORT
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import packets, xdp
from tests.kernel.reading import taken

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_STRANGE = packets.frame(
    bytes.fromhex(GATEWAY_MAC.replace(":", "")), b"\x02\0\0\0\0\x02", 0x88B5, b"by af_xdp"
)


async def test_the_guard_on_the_hosts_side_stops_af_xdp_and_not_the_proxy(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    guarded = _guarded(spec, lab.gateway_device)
    # The guard stands where the installer runs: here, that is the gateway's namespace.
    lab.gateway_namespace.call(
        lambda: installer.install(guarded, lab.sandbox_namespace, state, "nflog")
    )
    async with Nflog(lab.gateway_namespace, DEFAULT_GROUP) as source:
        lab.sandbox_namespace.call(lambda: xdp.send("sb0", _STRANGE))
        found = await taken(source, lambda record: record.ethertype == 0x88B5)
        assert [(record.rule, record.in_interface) for record in found] == [("guard", "gw0")]
    with lab.gateway_namespace.call(lambda: socket.create_server((GATEWAY4, PROXY_PORT))):
        lab.sandbox_namespace.call(
            lambda: socket.create_connection((GATEWAY4, PROXY_PORT), 2)
        ).close()
    lab.gateway_namespace.call(lambda: installer.remove(spec.sandbox, state))
    assert (
        lab.gateway_namespace.call(lambda: installer.verify(spec.sandbox, state)).verdict
        == "absent"
    )


def _guarded(spec: FenceSpec, device: str) -> FenceSpec:
    return type(spec)(sandbox=spec.sandbox, proxies=spec.proxies, guard_device=device)
