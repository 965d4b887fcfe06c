"""Checks of kernel settings (sysctls) that affect a fence, and of settings that a fence changes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.allow_commands import is_plain_device
from ocsf_nft.check.finding import Finding
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.accepted_flows import CheckScope

_SYS: Final = Path("/proc/sys")
_BRIDGE: Final = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
#: Share of used entries above which the connection tracking table is nearly full.
_NEARLY_FULL: Final = 0.8


def findings(scope: CheckScope) -> Iterator[Finding]:
    """Yield findings about sysctls that affect a fence, in the network namespace of ``scope``.

    A sysctl with a harmless value gives no finding.
    """
    yield from scope.namespace.call(lambda: tuple(_findings(scope)))


def _findings(scope: CheckScope) -> Iterator[Finding]:
    if scope.device is not None:
        yield from _forwarding(scope)
        yield from _router_advertisements(scope)
        yield from _reverse_path(scope)
        yield from _conntrack_table()
    yield from _bridge_netfilter()
    if _value("user/max_net_namespaces") == "0":
        yield Finding(
            name="max-net-namespaces",
            severity="degraded",
            meaning="user.max_net_namespaces is 0: no network namespace can be created for a "
            "sandbox",
            remedy="raise it",
            commands=("sysctl -w user.max_net_namespaces=1024",),
        )
    if _value("kernel/dmesg_restrict") == "1":
        yield Finding(
            name="dmesg-restrict",
            severity="info",
            meaning="kernel.dmesg_restrict is 1: reading the kernel log needs CAP_SYSLOG",
            remedy="none is needed with NFLOG, which doesn't need this capability",
        )


def _forwarding(scope: CheckScope) -> Iterator[Finding]:
    versions = {flow.packet.version for flow in scope.flows()}
    for version, path in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        if version in versions and _value(path) == "0":
            yield Finding(
                name="forwarding",
                severity="info",
                meaning=f"{_dotted(path)} is 0: IPv{version} of a VM is not forwarded",
                remedy="none: installing a VM's fence switches it on, and removing it restores it",
            )


def _router_advertisements(scope: CheckScope) -> Iterator[Finding]:
    """Yield a finding if a VM's fence makes the host ignore IPv6 router advertisements.

    The fence enables IPv6 forwarding. A host that forwards IPv6 accepts router advertisements only
    if the uplink's sysctl accept_ra is 2.
    """
    uplink = scope.uplinks.get(6)
    if uplink is None or not _exists(uplink):
        return
    if (
        _value("net/ipv6/conf/all/forwarding") == "0"
        and _device_value(6, uplink, "accept_ra") == "1"
    ):
        name = f"net.ipv6.conf.{_escaped(uplink)}.accept_ra"
        yield Finding(
            name="accept-ra",
            severity="degraded",
            meaning=f"{visible(name)} is 1: once IPv6 is forwarded, this host ignores router "
            "advertisements, and may lose its own address and default route",
            remedy="set it to 2 before you fence a VM with IPv6",
            commands=(shlex.join(["sysctl", "-w", f"{name}=2"]),)
            if is_plain_device(uplink)
            else (),
        )


def _reverse_path(scope: CheckScope) -> Iterator[Finding]:
    device = scope.device or ""
    if not _exists(device):
        return
    found = max(
        _device_value(4, "all", "rp_filter") or "0", _device_value(4, device, "rp_filter") or "0"
    )
    if found == "1":
        yield Finding(
            name="rp-filter",
            severity="info",
            meaning="rp_filter of the VM's device is strict: packets from the VM are dropped "
            "silently unless a route leads to its address through that device",
            remedy="give the device the gateway's address, with the subnet's prefix length",
        )


def _conntrack_table() -> Iterator[Finding]:
    count, limit = _value("net/netfilter/nf_conntrack_count"), _value("net/nf_conntrack_max")
    if count is None or limit is None or not (count.isdecimal() and limit.isdecimal()):
        return
    if int(limit) and int(count) > _NEARLY_FULL * int(limit):
        yield Finding(
            name="conntrack-table",
            severity="degraded",
            meaning=f"the connection tracking table has {count} of {limit} flows: when it is full, "
            "new flows of a VM are dropped, and no rule shows it",
            remedy="raise net.nf_conntrack_max",
            commands=(f"sysctl -w net.nf_conntrack_max={2 * int(limit)}",),
        )


def _bridge_netfilter() -> Iterator[Finding]:
    enabled = [name for name in _BRIDGE if _value(f"net/bridge/{name}") == "1"]
    if enabled:
        yield Finding(
            name="bridge-netfilter",
            severity="info",
            meaning=f"net.bridge.{enabled[0]} is 1: a frame that a bridge forwards also traverses "
            "the IP rules, so a chain that drops by default also drops between a bridge's ports",
            remedy="none, unless a VM's device or a sandbox's link is a bridge's port",
        )


def _device_value(version: int, device: str, name: str) -> str | None:
    return _value(f"net/ipv{version}/conf/{device}/{name}")


def _exists(device: str) -> bool:
    # The name must be safe in a path below /proc/sys.
    is_name = bool(device) and "/" not in device and device not in {".", "..", "all", "default"}
    return is_name and (_SYS / "net/ipv4/conf" / device).is_dir()


def _escaped(device: str) -> str:
    return device.replace(".", "/")  # sysctl(8): ``eth0.5`` is ``eth0/5``


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _value(path: str) -> str | None:
    try:
        return (_SYS / path).read_text("ascii", "replace").strip()
    except OSError:  # this kernel or namespace doesn't have it
        return None
