"""Attribution methods and capabilities of a service, from its configuration and fences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import HOST
from ocsf_nft.privileges import Capability
from ocsf_nft.service import fences

if TYPE_CHECKING:
    from ocsf_nft.config import Config

#: Capabilities for attribution, by the best method to use: to load the BPF programs that read
#: process data, and to inspect processes of other users.
_ATTRIBUTION_CAPABILITIES: Final = {
    "capture": {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE},
    "socket": {Capability.SYS_PTRACE},
    "user": set[Capability](),
}


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


def capabilities(config: Config) -> frozenset[Capability]:
    """Return the Linux capabilities that a :class:`Service` with this configuration needs.

    These capabilities depend on the namespace and the log transport of each fence. For a fence that
    the service does not install, this function reads both from the state directory.
    """
    state = StateDirectory(config.state_dir)
    needed: set[Capability] = set()
    if config.host_log == "kmsg":
        needed.add(Capability.SYSLOG)  # /dev/kmsg where dmesg_restrict=1
    for sandbox in config.sandbox:
        needed.add(Capability.NET_ADMIN)  # binding NFLOG, listing and renewing the fence
        if sandbox.profile != "tap":
            needed |= _ATTRIBUTION_CAPABILITIES[config.attribution.method]
        found = None if sandbox.install else state.read_or_none(sandbox.name)
        namespace = sandbox.namespace or (found.namespace if found else HOST)
        if namespace != HOST:
            needed.add(Capability.SYS_ADMIN)  # setns(2) into another namespace
            # /proc/PID/ns of another user's process: the namespace, and its user id map
            needed.add(Capability.SYS_PTRACE)
        transport = found.transport if found else fences.requested_transport(sandbox)
        if transport != "nflog":
            needed.add(Capability.SYSLOG)
    return frozenset(needed)
