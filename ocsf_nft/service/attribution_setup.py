"""Setup of the methods that find the process that sent a packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from ocsf_nft.config import Config
    from ocsf_nft.fence.state import StateDirectory


def build_fallback_chain(config: Config, state: StateDirectory) -> FallbackChain:
    """Return the chain of methods that find the process that sent a packet.

    The configured method is used first, then less exact methods. ``state`` is the directory
    with the records of the installed fences.
    """
    settings = config.attribution
    namespaces, permissive = {}, set()
    for sandbox in config.sandbox:
        found = None if sandbox.install else state.read_or_none(sandbox.name)
        if sandbox.profile != "tap":  # this kernel does not see a VM's processes
            known = HOST if found is None else found.namespace
            namespaces[sandbox.name] = sandbox.namespace or known
            if sandbox.permissive if found is None else found.spec.is_permissive:
                permissive.add(sandbox.name)
    return FallbackChain(
        namespaces,
        permissive=permissive,
        top=settings.method,
        wait_seconds=settings.wait_ms / 1000,
        hashed_bytes=settings.hash_max_bytes,
    )
