"""What the kernel and the system can do, found out by trying it.

What is tried goes into a scratch namespace that ends with it; nothing on the host is changed.
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

_PROBE: Final = FenceSpec(sandbox="check", proxies=(endpoint("192.0.2.1:3128"),))
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
#: Linux 6.9: such a table outlives its owner, and nobody else changes it meanwhile.
_OWNER: Final = """table inet probe {
	flags owner, persist
}
"""
_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TAP: Final = 0x2
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")


def able() -> Iterator[Finding]:
    """Whether a fence can stand here, and be read: in order of weight."""
    yield _tried("nft", "fatal", "the nft program is there", _nft)
    yield _tried("namespaces", "degraded", "network namespaces can be made and entered", _scratch)
    yield _tried(
        "fence", "fatal", "the kernel takes the fence: reject, netdev egress, sets",
        lambda: _loads("none"),
    )  # fmt: skip
    yield _tried("nflog", "degraded", "the fence can log to NFLOG", lambda: _loads("nflog"))
    yield _tried(
        "nflog-reader", "degraded", "NFLOG can be read",
        lambda: netns.in_scratch(lambda: _opens(Nflog(netns.Namespace(), DEFAULT_GROUP))),
    )  # fmt: skip
    yield _tried(
        "kernel-log", "degraded", "the fence can log to the kernel log", lambda: _loads("kmsg")
    )
    yield _tried(
        "all-netns", "degraded", "records of other namespaces can be let into the kernel log",
        kernel_log_sysctl.probe,
    )  # fmt: skip
    yield _tried("kmsg-reader", "degraded", "the kernel log can be read", lambda: _opens(Kmsg()))
    yield _tried("journal-reader", "degraded", "the journal can be read", lambda: _opens(Journal()))
    yield _tried(
        "guard", "degraded", "a guard can stand on the host's side: netdev ingress", _guard
    )
    yield _tried(
        "owner", "info", "a fence can be its service's own, so that others can't change it",
        lambda: _takes(_OWNER, "table flags owner and persist (Linux 6.9, nft 1.1.1)"),
    )  # fmt: skip


def able_with_machines(*, is_wanted: bool) -> Iterator[Finding]:
    """Whether a fence round a VM can stand, which needs more; ``is_wanted``: one is asked for."""
    severity: Severity = "fatal" if is_wanted else "degraded"
    yield _tried(
        "nat", severity, "a VM's subnet can be masqueraded",
        lambda: _takes(_NAT, "nft_masq with nf_nat"),
    )  # fmt: skip
    yield _tried(
        "conntrack", severity, "a VM's replies can be told from what else comes in",
        lambda: _takes(_CONNTRACK, "nft_ct with nf_conntrack"),
    )  # fmt: skip
    yield _tried("tap", severity, "TAP devices can be made", lambda: netns.in_scratch(_tap))


def _tried(name: str, severity: Severity, promise: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except (OcsfNftError, OSError) as error:
        cause, _, remedy = str(error).partition(": ")
        return Finding(name=name, severity=severity, meaning=cause, remedy=remedy or None)
    return Finding(name=name, severity="ok", meaning=promise)


def _nft() -> None:
    nft.find()


def _scratch() -> None:
    netns.in_scratch(lambda: None)


def _loads(transport: LogTransport) -> None:
    text = ruleset.fence(_PROBE, Surroundings(), transport)
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


def _takes(text: str, need: str) -> None:
    try:
        netns.in_scratch(lambda: nft.load(netns.Namespace(), text))
    except OcsfNftError as error:
        if "the kernel refused" in str(error) or "can't do" in str(error):
            raise UnsupportedError(f"this kernel has no {need}: load or build it") from error
        raise


def _guard() -> None:
    text = ruleset.guard(_PROBE, Surroundings(), "none")
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
            f"no TAP device can be made ({_TUN}, {error.strerror}): "
            "load the tun module, and run as root or with CAP_NET_ADMIN"
        ) from error


def _opens(source: Source) -> None:
    async def enter_and_leave() -> None:
        async with source:
            pass

    asyncio.run(enter_and_leave())
