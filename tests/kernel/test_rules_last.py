"""Order of a fence's chain on a link, and of another chain that has the last priority too.

Of two hooks with the same priority, the one that was registered last runs first
(``nf_hook_entries_grow`` in the kernel). So the fence's chain judges what every later chain has
made of a packet, unless the other chain was there before it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, PROXY_PORT, SANDBOX4, ip
from tests.kernel import conftest, far_side, headers, verdicts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

#: A packet to the proxy from the first port is sent to the second one.
_PORT, _TO = 6001, 443
_PORTS: Final = _PORT.to_bytes(2, "big") + _TO.to_bytes(2, "big")
_RIVAL: Final = f"""
table netdev rival {{
    chain last {{
        type filter hook egress device sb0 priority 2147483647
        ether type ip tcp sport {_PORT} tcp dport set {_TO}
    }}
}}
"""


def _gets_out(lab: Lab, counters: Callable[[Namespace], dict[str, int]]) -> bool:
    """Send a packet to the proxy that the rival changes; return whether it leaves like that."""
    packet = headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT, source_port=_PORT)
    before, end = counters(lab.sandbox_namespace)["refused_link"], time.monotonic() + 30
    with far_side.watch(lab) as far:
        lab.sandbox_namespace.call(lambda: verdicts.send_raw(packet, "sb0"))
        while time.monotonic() < end:
            if any(frame[34:38] == _PORTS for frame in far.strays()):
                return True
            if counters(lab.sandbox_namespace)["refused_link"] > before:
                return False
    pytest.fail("the packet was neither refused nor sent")


def test_chain_of_the_last_priority_is_the_fences(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
) -> None:
    sandbox = lab.sandbox_namespace
    ip("-n", lab.sandbox, "neigh", "replace", GATEWAY4, "lladdr", GATEWAY_MAC, "dev", "sb0")
    installed = installer.install(spec, sandbox, state, "nflog")
    conftest.load(sandbox, _RIVAL)
    assert not _gets_out(lab, counters)
    # A replacement that preserves the counters leaves the hook where it is.
    conftest.nft(sandbox, "add element inet ocsf_nft allowed4 { 203.0.113.7 . udp . 9 }")
    assert installer.renew(spec.sandbox, state) is not None
    assert not _gets_out(lab, counters)
    # A fence that is created again is the last one to be registered: its chain runs before the
    # rival's, which then changes what was allowed.
    conftest.nft(sandbox, "delete table netdev ocsf_nft")
    assert installer.renew(spec.sandbox, state) is not None
    assert _gets_out(lab, counters)
    # The rules are the same: only a list of the foreign chains shows it.
    found = state.read(spec.sandbox)
    assert found is not None
    assert found.policy == installed.policy
