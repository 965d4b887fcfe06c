"""Checks of the kernel and system features that a fence needs; each check tries one feature.

Nothing on the host is changed: rules and interfaces are created in a temporary namespace.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netns
from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.fence import kernel_log_sysctl, nft, ruleset
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, Surroundings
from ocsf_nft.fence.values import endpoint
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.check.finding import Severity
    from ocsf_nft.fence.spec import LogTransport
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


def findings() -> Iterator[Finding]:
    """Yield a finding for each feature that is needed to load fences or to read their log records.

    An available feature has a finding with severity ``ok``. The most important features come first.
    """
    yield _probe("nft", "fatal", "the nft program is installed", _nft)
    yield _probe(
        "namespaces", "degraded", "network namespaces can be created and entered", _scratch
    )
    yield _probe(
        "fence", "fatal", "the kernel accepts the fence: reject, netdev egress, sets",
        lambda: _load_fence("none"),
    )  # fmt: skip
    yield _probe("nflog", "degraded", "the fence can log to NFLOG", lambda: _load_fence("nflog"))
    yield _probe(
        "nflog-reader", "degraded", "NFLOG can be read",
        lambda: netns.in_scratch(lambda: _open(Nflog(netns.Namespace(), DEFAULT_GROUP))),
    )  # fmt: skip
    yield _probe(
        "kernel-log", "degraded", "the fence can log to the kernel log", lambda: _load_fence("kmsg")
    )
    yield _probe(
        "all-netns", "degraded", "records of other namespaces can be sent to the kernel log",
        kernel_log_sysctl.probe,
    )  # fmt: skip
    yield _probe("kmsg-reader", "degraded", "the kernel log can be read", lambda: _open(Kmsg()))
    yield _probe("journal-reader", "degraded", "the journal can be read", lambda: _open(Journal()))
    yield _probe(
        "guard", "degraded", "a guard can be loaded on the host's side: netdev ingress", _guard
    )
    yield _probe(
        "owner", "info", "a service can own its fence, so that other processes can't change it",
        lambda: _load(_OWNER, "table flags owner and persist (Linux 6.9, nft 1.1.1)"),
    )  # fmt: skip


def vm_findings(*, is_required: bool) -> Iterator[Finding]:
    """Yield a finding for each feature that only a VM's fence needs: NAT, conntrack, TAP devices.

    A missing feature is ``fatal`` if ``is_required`` is true, otherwise ``degraded``.
    """
    severity: Severity = "fatal" if is_required else "degraded"
    yield _probe(
        "nat", severity, "a VM's subnet can be masqueraded",
        lambda: _load(_NAT, "nft_masq with nf_nat"),
    )  # fmt: skip
    yield _probe(
        "conntrack", severity, "replies to a VM can be distinguished from other incoming traffic",
        lambda: _load(_CONNTRACK, "nft_ct with nf_conntrack"),
    )  # fmt: skip
    yield _probe("tap", severity, "TAP devices can be created", lambda: netns.in_scratch(_tap))


def _probe(name: str, severity: Severity, meaning: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except (OcsfNftError, OSError) as error:
        cause, _, remedy = str(error).partition(": ")
        return Finding(name=name, severity=severity, meaning=cause, remedy=remedy or None)
    return Finding(name=name, severity="ok", meaning=meaning)


def _nft() -> None:
    nft.find()


def _scratch() -> None:
    netns.in_scratch(lambda: None)


def _load_fence(transport: LogTransport) -> None:
    text = ruleset.fence(_TRIAL_FENCE, Surroundings(), transport)
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


def _load(text: str, need: str) -> None:
    try:
        netns.in_scratch(lambda: nft.load(netns.Namespace(), text))
    except OcsfNftError as error:
        if "the kernel refused" in str(error) or "can't do" in str(error):
            raise UnsupportedError(f"this kernel has no {need}: load or build it") from error
        raise


def _guard() -> None:
    text = ruleset.guard(_TRIAL_FENCE, Surroundings(), "none")
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


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
