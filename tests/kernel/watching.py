"""Records of a fence as they arrive, and their attributions by the fallback chain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.attribution import fallback_chain
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.fence import installer, policy_file
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT, Lab, ip
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.attribution.fallback_chain import TopMethod
    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

SANDBOX = "lab"
#: The delay of a run: it waits so long for the capture's event of a logged packet.
SHORT_DELAY: Final = fallback_chain._EVENT_DELAY_SECONDS
#: Log budget of a flow, and a user's quota of new flows.
_BUDGETS: Final = {
    "over 1/second burst 4 packets": "over 1000000/second burst 100000 packets",
    "rate 10/second burst 4096 packets": "rate 1000000/second burst 100000 packets",
}


@dataclass
class Watched:
    """Records and attributions so far, in the kernel's order."""

    chain: FallbackChain
    _patch: pytest.MonkeyPatch
    found: list[tuple[Record, Attribution]] = field(default_factory=list)
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, number: int, *, protocol: int | None = None) -> list[Attribution]:
        """Wait for ``number`` packets (of a protocol) and return their attributions."""
        await self.wait_for(lambda: len(self.of(protocol)) >= number)
        return self.of(protocol)

    async def wait_for(self, is_there: Callable[[], bool]) -> None:
        """Wait until a condition on the records so far is true."""
        async with asyncio.timeout(60), self.more:
            await self.more.wait_for(is_there)

    def set_event_delay(self, seconds: float) -> None:
        """Set how long the chain waits for the capture's event of a logged packet."""
        self._patch.setattr(fallback_chain, "_EVENT_DELAY_SECONDS", seconds)

    def of(self, protocol: int | None) -> list[Attribution]:
        """Return the attributions of a protocol's packets so far."""
        return [by for record, by in self.found if protocol in {None, record.protocol}]


def fence(
    lab: Lab,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_permissive: bool = False,
    is_generous: bool = True,
) -> None:
    """Install the real fence; if it ``is_generous`` it logs each packet."""
    read = policy_file.read

    @functools.cache
    def generous(file: str) -> str:
        text = read(file)
        for usual, more in _BUDGETS.items():
            text = text.replace(usual, more)
        return text

    if is_generous:
        monkeypatch.setattr(policy_file, "read", generous)
    proxies = (endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}"))
    spec = FenceSpec(sandbox=SANDBOX, proxies=proxies, is_permissive=is_permissive)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    # The tests encode numbers in the lengths of packets.
    ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "mtu", "65535")
    ip("-n", lab.gateway, "link", "set", lab.gateway_device, "mtu", "65535")


@contextlib.asynccontextmanager
async def attached(chain: FallbackChain, namespace: Namespace) -> AsyncIterator[AttachedNamespace]:
    """Find the senders in a namespace during the ``async with`` block."""
    found = await chain.attach(namespace)
    try:
        yield found
    finally:
        await chain.detach(found)


@contextlib.asynccontextmanager
async def watching(
    lab: Lab,
    *,
    top: TopMethod = "capture",
    wait_seconds: float = 0.05,
    hashed_bytes: int = 0,
    event_delay: float = 1.0,
) -> AsyncIterator[Watched]:
    """Read the fence of the lab in the background.

    On a busy machine, a sender may be stopped between the record of its packet and the capture's
    event. So the chain waits longer for the event than in a run: ``event_delay``, in seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        async with (
            FallbackChain(top=top, wait_seconds=wait_seconds, hashed_bytes=hashed_bytes) as chain,
            attached(chain, lab.sandbox_namespace) as attachment,
            Nflog(lab.sandbox_namespace, 4001) as source,
        ):
            watched = Watched(chain, patch)
            watched.set_event_delay(event_delay)

            async def read() -> None:
                async for batch in source.batches():
                    assert not batch.gaps
                    attributions = await chain.attributions(
                        attachment, batch.records, batch.since_ns
                    )
                    async with watched.more:
                        watched.found.extend(zip(batch.records, attributions, strict=True))
                        watched.more.notify_all()

            reading = asyncio.create_task(read())
            try:
                yield watched
            finally:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
