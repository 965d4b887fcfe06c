"""Checks of this host's settings: sysctls that affect a fence, and other firewall services.

A service may remove a fence, or drop a fenced VM's traffic: netfilter-persistent restores saved
rules, and so may remove a rule that accepts the traffic. The checks only read files.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.finding import Finding
from ocsf_nft.check.firewalls import is_plain_device
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.accepted_flows import CheckScope

_SYS: Final = Path("/proc/sys")
_BRIDGE: Final = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
#: Share of used entries above which the connection tracking table is nearly full.
_NEARLY_FULL: Final = 0.8
_FLUSH: Final = re.compile(r"^\s*flush\s+ruleset\b", re.MULTILINE)
_FLUSH_AT_STOP: Final = re.compile(r"^ExecStop(?:Post)?=.*\bflush ruleset\b", re.MULTILINE)
_UNIT_FOLDERS: Final = (
    *("etc/systemd/system", "run/systemd/system"),
    *("usr/local/lib/systemd/system", "usr/lib/systemd/system"),
)
_INCLUDE: Final = re.compile(r'^\s*include\s+"([^"\n]{1,200})"', re.MULTILINE)
_SETTING: Final = re.compile(r"^\s*(\w+)\s*=\s*\"?([^\"\s#]*)", re.MULTILINE)
#: Limit of the bytes that are read of a file: a file of rules is smaller.
_FILE_BYTES: Final = 1 << 20
_FILES: Final = 64
_CONFIGURATIONS: Final = ("etc/nftables.conf", "etc/sysconfig/nftables.conf")
#: Findings about other firewalls, by their units.
_SERVICES: Final[Mapping[str, Finding]] = {
    "firewalld.service": Finding(
        name="firewalld",
        severity="info",
        meaning="firewalld is enabled: a reload replaces only its own table; during a reload new "
        "flows are dropped (ReloadPolicy), also those of a VM",
        remedy="put the rules that a VM needs into its permanent configuration, see above",
    ),
    "ufw.service": Finding(
        name="ufw",
        severity="info",
        meaning="ufw is enabled: enabling or reloading it replaces only its own chains",
        remedy="add the rules that a VM needs with `ufw route allow`, which saves them, see above",
    ),
    "docker.service": Finding(
        name="docker",
        severity="info",
        meaning="Docker is enabled: each start sets iptables' policy of FORWARD to DROP, and "
        "leaves the rules in DOCKER-USER unchanged",
        remedy="add the rules that a VM needs to DOCKER-USER after each boot",
    ),
    "netfilter-persistent.service": Finding(
        name="netfilter-persistent",
        severity="info",
        meaning="netfilter-persistent is enabled: each start replaces iptables' tables by the "
        "saved ones",
        remedy="save the rules that a VM needs with `netfilter-persistent save`",
    ),
    "iptables.service": Finding(
        name="iptables-services",
        severity="info",
        meaning="iptables.service is enabled: each start replaces iptables' tables by the saved "
        "ones",
        remedy="save the rules that a VM needs with `service iptables save`",
    ),
}


def sysctl_findings(scope: CheckScope) -> Iterator[Finding]:
    """Yield findings about sysctls that affect a fence, in the network namespace of ``scope``.

    A sysctl with a harmless value gives no finding.
    """
    yield from scope.namespace.call(lambda: tuple(_sysctl_findings(scope)))


def _sysctl_findings(scope: CheckScope) -> Iterator[Finding]:
    if scope.device is not None:
        yield from _forwarding(scope)
        yield from _disabled_ipv6(scope)
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
                meaning=f"{path.replace('/', '.')} is 0: IPv{version} of a VM is not forwarded",
                remedy="none: installing a VM's fence switches it on, and removing it restores it",
            )


def _disabled_ipv6(scope: CheckScope) -> Iterator[Finding]:
    if all(subnet.version == 4 for subnet in scope.subnets):
        return
    # A device that is created later gets the default.
    device = scope.device if scope.device and _exists(scope.device) else "default"
    if _value(f"net/ipv6/conf/{device}/disable_ipv6") == "1":
        name = f"net.ipv6.conf.{device.replace('.', '/')}.disable_ipv6"  # as in sysctl(8)
        yield Finding(
            name="ipv6-disabled",
            severity="blocked",
            meaning=f"{visible(name)} is 1: the VM's device has no IPv6, so the VM can't reach its "
            "gateway by IPv6",
            remedy="enable it before the device gets the gateway's address, or leave out the "
            "subnet of IPv6",
            commands=(shlex.join(["sysctl", "-w", f"{name}=0"]),)
            if is_plain_device(device)
            else (),
        )


def _router_advertisements(scope: CheckScope) -> Iterator[Finding]:
    # The fence enables IPv6 forwarding. A host that forwards IPv6 accepts router advertisements
    # only if the uplink's sysctl accept_ra is 2.
    uplink = scope.uplinks.get(6)
    if uplink is None or not _exists(uplink):
        return
    if (
        _value("net/ipv6/conf/all/forwarding") == "0"
        and _value(f"net/ipv6/conf/{uplink}/accept_ra") == "1"
    ):
        # sysctl(8): ``eth0.5`` is ``eth0/5``.
        name = f"net.ipv6.conf.{uplink.replace('.', '/')}.accept_ra"
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
    general, of_device = (_value(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device))
    if max(general, of_device) == "1":
        yield Finding(
            name="rp-filter",
            severity="info",
            meaning="rp_filter of the VM's device is strict: packets from the VM are dropped "
            "silently unless a route leads to its address through that device",
            remedy="give the device the gateway's address, with the subnet's prefix length",
        )


def _conntrack_table() -> Iterator[Finding]:
    count, limit = _value("net/netfilter/nf_conntrack_count"), _value("net/nf_conntrack_max")
    if not (count.isdecimal() and limit.isdecimal() and int(limit)):
        return
    if int(count) > _NEARLY_FULL * int(limit):
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


def _exists(device: str) -> bool:
    # The name must be safe in a path below /proc/sys.
    is_name = bool(device) and "/" not in device and device not in {".", "..", "all", "default"}
    return is_name and (_SYS / "net/ipv4/conf" / device).is_dir()


def _value(path: str) -> str:
    return _text(_SYS / path).strip()  # empty if this kernel or namespace doesn't have it


def service_findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield a finding for each enabled firewall service that may block a fenced VM's traffic.

    Also yield a finding if nftables' configuration file contains ``flush ruleset``: loading this
    file would remove a fence too. Files are read below the directory ``root``.
    """
    enabled = _enabled(root)
    yield from _nftables(root, is_enabled="nftables.service" in enabled)
    for unit, found in _SERVICES.items():
        if unit not in enabled:
            continue
        settings = _text(root / "etc/default/ufw") if found.name == "ufw" else ""
        if ("MANAGE_BUILTINS", "yes") in _SETTING.findall(settings):
            emptied = "; with MANAGE_BUILTINS=yes it empties iptables' own chains as well"
            yield replace(found, meaning=found.meaning + emptied)
        else:
            yield found


def _nftables(root: Path, *, is_enabled: bool) -> Iterator[Finding]:
    files = (file for path in _CONFIGURATIONS for file in _with_includes(root, root / path))
    flushing = next((file for file in files if _FLUSH.search(_text(file))), None)
    if flushing is None:
        if is_enabled:
            yield from _flush_at_stop(root)
        return
    shown = visible(str(Path("/") / flushing.relative_to(root)))
    meaning = f"{shown} has `flush ruleset`: loading it removes all tables, also a fence's"
    yield Finding(
        name="flush-ruleset",
        severity="degraded" if is_enabled else "info",
        meaning=f"nftables.service is enabled, and {meaning}, at each start and reload"
        if is_enabled
        else f"{meaning}; nftables.service, which would load it, is not enabled",
        remedy="let it replace only its own tables (`table inet filter`, `delete table inet "
        "filter`, then the table), and start fences after it; `run` detects and reports a "
        "flush",
    )


def _flush_at_stop(root: Path) -> Iterator[Finding]:
    # The first file of these folders is the unit: systemd.unit(5).
    files = (root / folder / "nftables.service" for folder in _UNIT_FOLDERS)
    if _FLUSH_AT_STOP.search(next(filter(None, map(_text, files)), "")):
        yield Finding(
            name="flush-ruleset",
            severity="info",
            meaning="nftables.service is enabled, and each stop or restart runs `nft flush "
            "ruleset`, which removes all tables, also a fence's",
            remedy="use `systemctl reload nftables` instead; `run` detects and reports a flush",
        )


def _enabled(root: Path) -> set[str]:
    # From the links of enabled units: no request to a service manager.
    found = set()
    for folder in ("etc/systemd/system", "run/systemd/system"):
        for directory in sorted((root / folder).glob("*.wants"))[:_FILES]:
            with contextlib.suppress(OSError):  # no such directory, or no permission
                found |= {link.name for link in directory.iterdir()}
    return found


def _with_includes(root: Path, file: Path) -> list[Path]:
    found = [file]
    for pattern in _INCLUDE.findall(_text(file)):
        relative = pattern.lstrip("/") if pattern.startswith("/") else f"etc/{pattern}"
        if relative and not {"..", "**"} & set(Path(relative).parts):
            with contextlib.suppress(ValueError):  # no file has such a name (Python 3.13)
                found += sorted(root.glob(relative))[: _FILES - len(found)]
    return found


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_FILE_BYTES).decode("utf-8", "replace")
    except OSError:  # no such file, or no permission
        return ""
