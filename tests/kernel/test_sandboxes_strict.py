"""A VM whose fence becomes strict, and the opposite, while a service watches it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import INTERNET4, ip
from tests.kernel import conftest, headers, packets, tap
from tests.kernel.serving import sandbox as any_sandbox
from tests.kernel.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig

pytestmark = pytest.mark.kernel

_FORBIDDEN = headers.udp(tap.VM4, INTERNET4, 4433)
_SECONDS = 60.0
#: Pause between two frames: the thread shares its CPU with the service.
_PAUSE_SECONDS = 0.0005
_FAR = f"""
table netdev far {{
    counter forbidden {{ }}
    chain ingress {{
        type filter hook ingress device {tap.INTERNET_END} priority 0
        udp dport 4433 counter name forbidden
    }}
}}
"""


def _vm(site: tap.Site, **keys: Any) -> SandboxConfig:
    given = {
        "netns": site.host_name,
        "profile": "tap",
        "proxy": (),
        "device": tap.DEVICE,
        "subnet": tap.SUBNETS,
        "gateway_port": tap.PORT,
    }
    return any_sandbox("vm", **given | keys)


@contextlib.contextmanager
def _flooding(machine: tap.Machine) -> Iterator[None]:
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(_PAUSE_SECONDS):
            machine.send_ip(_FORBIDDEN)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _arrived(site: tap.Site) -> int:
    """Return how many forbidden packets have come in at the internet's end of the uplink."""
    shown = conftest.nft(site.internet, "list", "counter", "netdev", "far", "forbidden")
    return int(shown.split("packets ")[1].split()[0])


def _wait_for_arrival(site: tap.Site, before: int) -> None:
    end = time.monotonic() + _SECONDS
    while _arrived(site) == before:
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_fence_becomes_strict_while_it_is_watched(site: tap.Site, tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        put, release = served.service.put, served.service.release
        with tap.silent_machine(site) as machine:
            ip("-n", site.host_name, "neigh", "replace", tap.NEXT_HOPS[0], "lladdr",
                   "02:00:00:00:00:fe", "dev", tap.UPLINK)  # fmt: skip
            machine.send(packets.frame(b"\xff" * 6, tap.VM_MAC, packets.ETH_ARP,
                                       packets.arp(tap.VM4, tap.GATEWAY4, tap.VM_MAC)))  # fmt: skip
            await put(_vm(site))
            conftest.load(site.internet, _FAR)
            machine.send_ip(_FORBIDDEN)
            await asyncio.to_thread(_wait_for_arrival, site, 0)
            await put(_vm(site, strict=True))
            before = _arrived(site)
            with _flooding(machine):
                # Each of these replacements preserves the refusal of all that both policies refuse.
                for number in range(4):
                    allowed = f"tcp:203.0.112.{number + 1}:443"
                    await put(_vm(site, strict=True, allow=(allowed,)))
            await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["ip"] == INTERNET4
            )
            assert _arrived(site) == before
            await put(_vm(site, strict=False))
            machine.send_ip(_FORBIDDEN)
            await asyncio.to_thread(_wait_for_arrival, site, before)
            final = await release("vm")
    assert sum(each.refused for each in final.balances) == sum(served.attempts("vm").values())
    assert all(each.counter_mismatch == 0 for each in final.balances)
    assert any("strict: none → true" in each for each in served.messages("vm"))
    assert any("strict: true → " in each for each in served.messages("vm"))
