"""Checks of a host on which a fence (the rules around a sandbox or a VM) is to work.

The checks examine the features of the system, and the rules that block traffic that the fence
accepts. Each finding has a remedy if there is one. The checks change nothing; only
:func:`remove_leftovers` does.

The accepted traffic is modelled as packets that walk through the host's rules. Only some fields of
a modelled packet are known. So it can be unknown whether a rule matches the packet. Then the
finding reports "may drop".
"""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

from ocsf_nft.check import (
    attribution_methods,
    blocking_rules,
    bypass_paths,
    capabilities,
    conflicting_services,
    devices,
    kernel_features,
    leftovers,
    read_ruleset,
    sysctls,
)
from ocsf_nft.check.accepted_flows import INTERNET
from ocsf_nft.check.blocking_rules import CheckScope
from ocsf_nft.check.finding import Finding, RuleLocation, Severity, exit_code
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.devices import NetDevice
    from ocsf_nft.fence.values import Address, Endpoint, Subnet
    from ocsf_nft.netns import Namespace

__all__ = [
    "CheckScope",
    "Finding",
    "RuleLocation",
    "Severity",
    "blocking",
    "check_scope",
    "exit_code",
    "findings",
    "remove_leftovers",
]


def check_scope(
    namespace: Namespace,
    *,
    device: str | None,
    subnets: tuple[Subnet, ...] = (),
    port: int,
    proxies: tuple[Endpoint, ...] = (),
) -> CheckScope:
    """Return the scope of a check: a namespace, and the VM or sandbox whose traffic is checked.

    The interfaces that lead to the internet and to the proxies are read from the namespace's
    routes. ``device`` is the VM's TAP device or a pattern such as ``vmtap-*``; None if there is no
    VM. ``subnets`` are the VM's subnets, ``port`` is the gateway's port. ``proxies`` are a
    sandbox's proxies.
    """
    internet: dict[int, Address] = {
        4: ipaddress.IPv4Address(INTERNET[4]),
        6: ipaddress.IPv6Address(INTERNET[6]),
    }
    proxy_links = devices.uplinks(
        namespace, {number: proxy.address for number, proxy in enumerate(proxies)}
    )
    return CheckScope(
        namespace=namespace,
        device=device,
        subnets=subnets,
        port=port,
        proxies=proxies,
        uplinks=devices.uplinks(namespace, internet),
        links={proxies[number]: name for number, name in proxy_links.items()},
    )


def findings(scope: CheckScope) -> Iterator[Finding]:
    """Yield all findings about a host, in the order in which `check` prints them.

    The features of the system come first, then the rules, then services and sysctls. Raises
    AbsentError or UnsupportedError if the namespace can't be entered.
    """
    if sys.platform != "linux":
        yield Finding(
            name="system",
            severity="fatal",
            meaning=f"nftables needs Linux: on {sys.platform} only convert and explain work",
        )
        return
    scope.namespace.identity()
    yield from kernel_features.findings()
    if scope.device is not None:
        yield from kernel_features.vm_findings(is_required=not scope.device.endswith("*"))
    yield from capabilities.findings()
    yield from attribution_methods.findings(scope.namespace)
    try:
        ruleset, present = read_ruleset.read(scope.namespace), _list_devices(scope)
    except OcsfNftError as error:
        yield _unread(error)
    else:
        yield from blocking_rules.judge(ruleset, scope)
        yield from bypass_paths.findings(ruleset, present, scope)
        yield from leftovers.findings(leftovers.find_leftovers(ruleset, present, scope))
    yield from conflicting_services.findings()
    yield from sysctls.findings(scope)


def blocking(scope: CheckScope) -> tuple[Finding, ...]:
    """Return only the findings about rules that block traffic that a fence accepts.

    The rules may be those of another fence, such as one around the whole namespace. The command
    ``install`` uses this function. Reading the rules needs CAP_NET_ADMIN over the namespace. If
    they can't be read, the only finding reports this.
    """
    try:
        ruleset = read_ruleset.read(scope.namespace)
    except OcsfNftError as error:
        return (_unread(error),)
    return tuple(
        finding
        for finding in blocking_rules.judge(ruleset, scope)
        if finding.severity == "blocked" or finding.name == blocking_rules.ACTIVE_FENCE
    )


def remove_leftovers(scope: CheckScope) -> Iterator[tuple[leftovers.Leftover, str | None]]:
    """Remove leftovers of an older iptables set-up for VMs, and yield each one with its result.

    The result is None after success, else the reason why the leftover was not removed. Raises
    UnsupportedError if the rules can't be read, and OcsfNftError if the interfaces can't be listed.
    """
    ruleset = read_ruleset.read(scope.namespace)
    found = leftovers.find_leftovers(ruleset, _list_devices(scope), scope)
    yield from leftovers.remove(found, scope.namespace)


def _unread(error: OcsfNftError) -> Finding:
    cause, _, remedy = str(error).partition(": ")
    return Finding(
        name="ruleset",
        severity="blocked",
        meaning=f"the rules here can't be read, so it is unknown which traffic they drop ({cause})",
        remedy=remedy or None,
    )


def _list_devices(scope: CheckScope) -> Mapping[str, NetDevice]:
    try:
        return devices.list_devices(scope.namespace)
    except OSError as error:
        raise OcsfNftError(f"the interfaces can't be listed: {error.strerror or error}") from error
