"""Parts of a service by its configuration, and the capabilities that it needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ocsf_nft import privileges, seccomp
from ocsf_nft.attribution import fallback_chain
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.gate import Gate
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import HOST
from ocsf_nft.privileges import Capability
from ocsf_nft.service import fences
from ocsf_nft.state import redaction_key, state_db
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from ocsf_nft.attribution.fallback_chain import LoadedCapture
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


#: Only to load BPF programs, since the Linux version below: before, to write their maps too
#: (bpf_prog_load and bpf_map_update in kernel/bpf/syscall.c; kernel.unprivileged_bpf_disabled).
_LOADING_CAPABILITIES: Final = frozenset((Capability.BPF, Capability.PERFMON))
_MAPS_WITHOUT_PRIVILEGE: Final = (5, 19)
#: Part of the store's size for dead letters: events that a sink refused.
_DEAD_LETTER_PART: Final = 8


class Programs(NamedTuple):
    """BPF programs that are loaded into the kernel."""

    #: None if the configuration needs no capture, or if it is loaded later.
    capture: LoadedCapture | None = None
    #: None if the system has no last gate, or if no fence needs it.
    gate: Gate | None = None


def load_programs(config: Config) -> Programs:
    """Load all BPF programs that the configuration needs.

    Then a service needs no privilege for BPF any more, unless the kernel is older than Linux 5.19.
    """
    return Programs(_load_capture(config), load_gate(config))


def _load_capture(config: Config) -> LoadedCapture | None:
    captures = config.control is not None or any(each.profile != "tap" for each in config.sandbox)
    if config.attribution.method != "capture" or not captures:
        return None
    return fallback_chain.load_capture()


def load_gate(config: Config) -> Gate | None:
    """Load the BPF program of the last gate; None if that is not possible, or not needed.

    Call it before :func:`drop_privileges`.
    """
    if config.control is None and all(each.profile == "sidecar" for each in config.sandbox):
        return None
    try:
        return Gate()
    except UnsupportedError as error:
        _log.info("the fences have no last gate", reason=str(error))
        return None


def attribution_chain(config: Config, loaded: LoadedCapture | None = None) -> FallbackChain:
    """Return the chain of methods that find the process that sent a packet.

    ``loaded`` is the capture of :func:`load_programs`, if it was called.
    """
    settings = config.attribution
    return FallbackChain(
        top=settings.method,
        wait_seconds=settings.wait_ms / 1000,
        hashed_bytes=settings.hash_max_bytes,
        loaded=loaded,
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


def running_capabilities(config: Config) -> frozenset[Capability]:
    """Return the capabilities that a service needs after :func:`load_programs` was called.

    Raises as :func:`capabilities`.
    """
    needed = capabilities(config)
    return needed - _LOADING_CAPABILITIES if _are_maps_open(os.uname().release) else needed


def drop_privileges(config: Config) -> None:
    """Drop all privileges that a service does not need after :func:`load_programs`, for good.

    Call this before the first thread starts. Raises UnsupportedError if the kernel refuses to drop
    capabilities. A filter of system calls that the kernel refuses is only logged.
    """
    needed = running_capabilities(config)
    privileges.keep_only(needed)
    try:
        is_filtered = seccomp.forbid_unneeded_calls(loads_bpf=Capability.BPF in needed)
    except UnsupportedError as error:
        _log.warning("the service runs without a filter of system calls", reason=str(error))
    else:
        if not is_filtered:
            _log.info("the service runs without a filter of system calls", reason=seccomp.UNKNOWN)


def _are_maps_open(release: str) -> bool:
    """Return True if this kernel lets a process without CAP_BPF use the BPF maps that it has."""
    numbers = [int(each) for each in release.replace("-", ".").split(".")[:2] if each.isdecimal()]
    return tuple(numbers) >= _MAPS_WITHOUT_PRIVILEGE


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
        if transport != "nflog" and sandbox.source != "journal":
            needed.add(Capability.SYSLOG)
    return frozenset(needed)
