"""Settings of the kernel that a fence depends on, or that depend on it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.allow_commands import is_plain_device
from ocsf_nft.check.finding import Finding
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.diagnosis import Question

_SYS: Final = Path("/proc/sys")
_BRIDGE: Final = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
#: From here on new flows are about to be refused.
_FULL: Final = 0.8


def settings(question: Question) -> Iterator[Finding]:
    """What is set in the namespace in question; what isn't worth a word is not told."""
    yield from question.namespace.call(lambda: tuple(_all(question)))


def _all(question: Question) -> Iterator[Finding]:
    if question.device is not None:
        yield from _forwarding(question)
        yield from _router_advertisements(question)
        yield from _reverse_path(question)
        yield from _tracked()
    yield from _bridges()
    if _value("user/max_net_namespaces") == "0":
        yield Finding(
            name="max-net-namespaces",
            severity="degraded",
            meaning="user.max_net_namespaces is 0: no sandbox can have a network of its own",
            remedy="raise it",
            commands=("sysctl -w user.max_net_namespaces=1024",),
        )
    if _value("kernel/dmesg_restrict") == "1":
        yield Finding(
            name="dmesg-restrict",
            severity="info",
            meaning="kernel.dmesg_restrict is 1: reading the kernel log takes CAP_SYSLOG",
            remedy="nothing to do with NFLOG, which needs no such thing",
        )


def _forwarding(question: Question) -> Iterator[Finding]:
    versions = {flow.packet.version for flow in question.flows()}
    for version, path in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        if version in versions and _value(path) == "0":
            yield Finding(
                name="forwarding",
                severity="info",
                meaning=f"{_dotted(path)} is 0: IPv{version} of a VM is not forwarded",
                remedy="installing a VM's fence switches it on, and removing it puts it back",
            )


def _router_advertisements(question: Question) -> Iterator[Finding]:
    """With forwarding on, 1 means: don't listen to routers any more (ip-sysctl)."""
    uplink = question.uplinks.get(6)
    if uplink is None or not _is_directory(uplink):
        return
    if _value("net/ipv6/conf/all/forwarding") == "0" and _of(6, uplink, "accept_ra") == "1":
        name = f"net.ipv6.conf.{_escaped(uplink)}.accept_ra"
        yield Finding(
            name="accept-ra",
            severity="degraded",
            meaning=f"{visible(name)} is 1: once IPv6 is forwarded, this host takes no more router "
            "advertisements, and may lose its own address and default route",
            remedy="set it to 2 before a VM with IPv6 is fenced",
            commands=(shlex.join(["sysctl", "-w", f"{name}=2"]),)
            if is_plain_device(uplink)
            else (),
        )


def _reverse_path(question: Question) -> Iterator[Finding]:
    device = question.device or ""
    if not _is_directory(device):
        return
    found = max(_of(4, "all", "rp_filter") or "0", _of(4, device, "rp_filter") or "0")
    if found == "1":
        yield Finding(
            name="rp-filter",
            severity="info",
            meaning="rp_filter of the VM's device is strict: what it sends is dropped without a "
            "word unless a route leads to its address by that device",
            remedy="give the device the gateway's address, with the subnet's length",
        )


def _tracked() -> Iterator[Finding]:
    count, limit = _value("net/netfilter/nf_conntrack_count"), _value("net/nf_conntrack_max")
    if count is None or limit is None or not (count.isdecimal() and limit.isdecimal()):
        return
    if int(limit) and int(count) > _FULL * int(limit):
        yield Finding(
            name="conntrack-table",
            severity="degraded",
            meaning=f"{count} of {limit} tracked flows: when it is full, new flows of a VM are "
            "dropped, with no rule to blame",
            remedy="raise net.nf_conntrack_max",
            commands=(f"sysctl -w net.nf_conntrack_max={2 * int(limit)}",),
        )


def _bridges() -> Iterator[Finding]:
    on = [name for name in _BRIDGE if _value(f"net/bridge/{name}") == "1"]
    if on:
        yield Finding(
            name="bridge-netfilter",
            severity="info",
            meaning=f"net.bridge.{on[0]} is 1: frames that a bridge passes on go through the rules "
            "of IP too, so a rule that drops by default drops between a bridge's ports",
            remedy="nothing, unless a VM's device or a sandbox's link is a bridge's port",
        )


def _of(version: int, device: str, name: str) -> str | None:
    return _value(f"net/ipv{version}/conf/{device}/{name}")


def _is_directory(device: str) -> bool:
    """Whether it is an interface that is there, and named as a path can be."""
    is_name = bool(device) and "/" not in device and device not in {".", "..", "all", "default"}
    return is_name and (_SYS / "net/ipv4/conf" / device).is_dir()


def _escaped(device: str) -> str:
    """As sysctl(8) wants a name with a dot in it."""
    return device.replace(".", "/")


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _value(path: str) -> str | None:
    try:
        return (_SYS / path).read_text("ascii", "replace").strip()
    except OSError:  # not of this kernel, or not of this namespace
        return None
