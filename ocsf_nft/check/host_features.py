"""Checks of the features and privileges that this host gives to fences and their service.

A feature of the kernel is tried. Nothing on the host is changed: rules and interfaces are created
in a temporary namespace.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import netns
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.attribution.socket_method import SocketLookup
from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.fence import kernel_log_sysctl, nft, ruleset
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, Surroundings
from ocsf_nft.fence.values import endpoint
from ocsf_nft.privileges import Capability
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.finding import Severity
    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.netns import Namespace
    from ocsf_nft.sources.base import Source

_TRIAL_FENCE: Final = FenceSpec(sandbox="check", proxies=(endpoint("192.0.2.1:3128"),))
_NAT: Final = """table inet probe {
	chain postrouting {
		type nat hook postrouting priority srcnat
		masquerade
	}
}
"""
_CONNTRACK: Final = """table inet probe {
	chain forward {
		type filter hook forward priority filter
		ct state established accept
	}
}
"""
#: Linux 6.9: such a table survives its owner, and no other process can change it meanwhile.
_OWNER: Final = """table inet probe {
	flags owner, persist
}
"""
_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TAP: Final = 0x2
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")
_STATUS: Final = Path("/proc/thread-self/status")
_EFFECTIVE: Final = "\nCapEff:"
#: Capabilities, the commands that need them, and the purpose.
_NEEDS: Final = (
    (Capability.NET_ADMIN, "install, verify, remove and run", "change and list nftables"),
    (Capability.SYS_ADMIN, "--netns and --pid of every command", "enter another namespace"),
    (Capability.SYS_PTRACE, "--pid, and users of other user namespaces", "inspect processes"),
    (Capability.BPF, "run --attribution capture", "load programs that name processes"),
    (Capability.PERFMON, "the same", "read the processes' details"),
    (Capability.SYSLOG, "run --source kmsg", "read the kernel log"),
)
#: `run` also works without these, with less information.
_OPTIONAL: Final = {Capability.BPF, Capability.PERFMON, Capability.SYSLOG}
_CAPTURE: Final = (
    "capture needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace (root has "
    "them), libbpf 1, and Linux 5.18 with CONFIG_DEBUG_INFO_BTF; limited capture needs cgroup v2 "
    "and Linux 5.15"
)
_LIMITED_CAPTURE: Final = (
    "at its system call, only by PID, name and user; a process that sends on another one's socket "
    "is missed: this kernel doesn't describe its types"
)


def findings(scope: CheckScope) -> Iterator[Finding]:
    """Yield a finding for each feature of the host, the most important features first.

    An available feature has a finding with severity ``ok``. A feature that only the fence of a VM
    needs is ``fatal`` if it is missing and ``scope`` has a single VM.
    """
    features: tuple[tuple[str, Severity, str, Callable[[], object]], ...] = (
        ("nft", "fatal", "the nft program is installed", nft.find),
        ("namespaces", "degraded", "network namespaces can be created and entered",
         lambda: netns.in_scratch(lambda: None)),
        ("fence", "fatal", "the kernel accepts the fence: reject, netdev egress, sets",
         lambda: _load_fence("none")),
        ("nflog", "degraded", "the fence can log to NFLOG", lambda: _load_fence("nflog")),
        ("nflog-reader", "degraded", "NFLOG can be read",
         lambda: netns.in_scratch(lambda: _open(Nflog(netns.Namespace(), DEFAULT_GROUP)))),
        ("kernel-log", "degraded", "the fence can log to the kernel log",
         lambda: _load_fence("kmsg")),
        ("all-netns", "degraded", "records of other namespaces can be sent to the kernel log",
         kernel_log_sysctl.probe),
        ("kmsg-reader", "degraded", "the kernel log can be read", lambda: _open(Kmsg())),
        ("journal-reader", "degraded", "the journal can be read", lambda: _open(Journal())),
        ("guard", "degraded", "a guard can be loaded on the host's side: netdev ingress",
         lambda: _load(ruleset.guard(_TRIAL_FENCE, Surroundings(), "none"))),
        ("owner", "info", "a service can own its fence, so that other processes can't change it",
         lambda: _load_or_explain(_OWNER, "table flags owner and persist (Linux 6.9, nft 1.1.1)")),
    )  # fmt: skip
    if scope.device is not None:
        severity: Severity = "degraded" if scope.device.endswith("*") else "fatal"
        features += (
            ("nat", severity, "a VM's subnet can be masqueraded",
             lambda: _load_or_explain(_NAT, "nft_masq with nf_nat")),
            ("conntrack", severity,
             "replies to a VM can be distinguished from other incoming traffic",
             lambda: _load_or_explain(_CONNTRACK, "nft_ct with nf_conntrack")),
            ("tap", severity, "TAP devices can be created", lambda: netns.in_scratch(_tap)),
        )  # fmt: skip
    for feature in features:
        yield _probe(*feature)
    yield privileges()
    yield attribution(scope.namespace)


def privileges() -> Finding:
    """Return a finding about the Linux capabilities that this process lacks.

    It also names the ``ocsf-nft`` commands that need these capabilities.
    """
    after = _STATUS.read_text("ascii", "replace").partition(_EFFECTIVE)[2]
    effective = int(after.split(maxsplit=1)[0], 16)
    missing = [need for need in _NEEDS if not effective >> need[0] & 1]
    if not missing:
        names = ", ".join(f"CAP_{need[0].name}" for need in _NEEDS)
        return Finding(name="privileges", severity="ok", meaning=f"held: {names}")
    return Finding(
        name="privileges",
        severity="info" if {capability for capability, *_ in missing} <= _OPTIONAL else "degraded",
        meaning="not held: "
        + "; ".join(
            f"CAP_{capability.name} ({commands}: to {purpose})"
            for capability, commands, purpose in missing
        ),
        remedy="run as root, or add these capabilities where they are needed",
    )


def attribution(namespace: Namespace) -> Finding:
    """Return a finding about the best method to find the processes that send packets.

    Only methods that work on this host for ``namespace`` are considered. The finding's ``remedy``
    lists what a better method needs; it is None if there is no better method.
    """
    severity: Severity = "info"
    remedy: str | None = _CAPTURE
    try:
        with Capture() as capture:
            capture.watch(cookie(namespace))
            if capture.knows_types:
                severity, remedy, how = "ok", None, "as it sends, even if it exits"
            else:
                remedy, how = "use a kernel with CONFIG_DEBUG_INFO_BTF", _LIMITED_CAPTURE
    except OcsfNftError as error:
        how = _without_capture(namespace, str(error))
    meaning = f"a process is identified {how}"
    return Finding(name="attribution", severity=severity, meaning=meaning, remedy=remedy)


def _without_capture(namespace: Namespace, reason: str) -> str:
    try:
        with SocketLookup(namespace):
            return (
                "by its socket, afterwards, which finds few processes that have exited by then: "
                f"{reason}"
            )
    except OcsfNftError as error:
        return f"only by its user: {reason}; {error}"


def _probe(name: str, severity: Severity, meaning: str, attempt: Callable[[], object]) -> Finding:
    try:
        attempt()
    except (OcsfNftError, OSError) as error:
        cause, _, remedy = str(error).partition(": ")
        return Finding(name=name, severity=severity, meaning=cause, remedy=remedy or None)
    return Finding(name=name, severity="ok", meaning=meaning)


def _load_fence(transport: LogTransport) -> None:
    _load(ruleset.fence(_TRIAL_FENCE, Surroundings(), transport))


def _load(text: str) -> None:
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


def _load_or_explain(text: str, need: str) -> None:
    try:
        _load(text)
    except OcsfNftError as error:
        if "the kernel refused" in str(error) or "can't do" in str(error):
            raise UnsupportedError(f"this kernel has no {need}: load or build it") from error
        raise


def _tap() -> None:
    try:
        descriptor = os.open(_TUN, os.O_RDWR)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(b"probe0", _IFF_TAP | _IFF_NO_PI))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnsupportedError(
            f"no TAP device can be created ({_TUN}, {error.strerror}): "
            "load the tun module, and run as root or with CAP_NET_ADMIN"
        ) from error


def _open(source: Source) -> None:
    async def open_and_close() -> None:
        async with source:
            pass

    asyncio.run(open_and_close())
