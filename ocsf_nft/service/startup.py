"""Parts of a service by its configuration, and the capabilities that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import HOST
from ocsf_nft.privileges import Capability
from ocsf_nft.service import fences
from ocsf_nft.state import redaction_key, state_db
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from ocsf_nft.config import Config
    from ocsf_nft.redaction import Redactor
    from ocsf_nft.state.retry_until_writable import StorageRetrier

_log = structlog.get_logger()

#: Capabilities for attribution, by the best method to use: to load the BPF programs that read
#: process data, and to inspect processes of other users.
_ATTRIBUTION_CAPABILITIES: Final = {
    "capture": {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE},
    "socket": {Capability.SYS_PTRACE},
    "user": set[Capability](),
}
#: Capabilities for a sandbox in any namespace, with any log transport.
_CONTROL_CAPABILITIES: Final = frozenset(
    (Capability.NET_ADMIN, Capability.SYS_ADMIN, Capability.SYS_PTRACE, Capability.SYSLOG)
)


#: Part of the store's size for dead letters: events that a sink refused.
_DEAD_LETTER_PART: Final = 8


def fallback_chain(config: Config) -> FallbackChain:
    """Return the chain of methods that find the process that sent a packet."""
    settings = config.attribution
    return FallbackChain(
        top=settings.method,
        wait_seconds=settings.wait_ms / 1000,
        hashed_bytes=settings.hash_max_bytes,
    )


def redactor(config: Config) -> Redactor:
    """Return the redactor of secrets, with the key in the state directory.

    If the key can't be used, the redactor has a random key, and a warning is logged.
    """
    try:
        key = redaction_key.load(config.state_dir) if config.redaction.enabled else None
    except UnsupportedError as error:
        key = None
        _log.warning(
            "placeholders of secrets are different from those of other runs", reason=str(error)
        )
    return config.redaction.redactor(key)


def state_store(config: Config, retrier: StorageRetrier) -> StateStore:
    """Return the store of events and packet counts, which is not open yet."""
    settings = config.store
    return StateStore(
        settings.path or config.state_dir / state_db.FILE,
        retrier,
        max_bytes=settings.max_bytes - dead_letter_bytes(config),
        max_seconds=settings.max_age,
        drops=settings.when_full == "drop",
    )


def dead_letter_bytes(config: Config) -> int:
    """Return the maximum size of all dead letters in bytes."""
    return config.store.max_bytes // _DEAD_LETTER_PART


def capabilities(config: Config) -> frozenset[Capability]:
    """Return the Linux capabilities that a :class:`Service` with this configuration needs.

    These capabilities depend on the namespace and the log transport of each fence. For a fence that
    the service does not install, this function reads both from the state directory.
    """
    state = StateDirectory(config.state_dir)
    needed: set[Capability] = set()
    if config.control is not None:  # for any sandbox that is added later
        needed |= _ATTRIBUTION_CAPABILITIES[config.attribution.method]
        needed |= _CONTROL_CAPABILITIES
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
