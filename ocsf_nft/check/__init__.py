"""Checks of a host before a fence (the firewall rules around a sandbox or a VM) is installed.

They find missing features, and rules that drop or may drop traffic that the fence accepts. Only
:func:`remove_leftovers` changes the host.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

from ocsf_nft.check import (
    blocking_rules,
    bypass_paths,
    devices,
    host_features,
    host_settings,
    leftovers,
    read_ruleset,
    weakening_settings,
)
from ocsf_nft.check.accepted_flows import INTERNET, CheckScope
from ocsf_nft.check.finding import Finding, Severity, exit_code
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.values import Endpoint, Subnet
    from ocsf_nft.netns import Namespace

__all__ = [
    "CheckScope",
    "Finding",
    "Severity",
    "blocking",
    "check_scope",
    "exit_code",
    "findings",
    "remove_leftovers",
]


def check_scope(  # noqa: PLR0913 - each is one value of the scope
    namespace: Namespace,
    *,
    device: str | None,
    subnets: tuple[Subnet, ...] = (),
    port: int,
    is_strict: bool = False,
    proxies: tuple[Endpoint, ...] = (),
) -> CheckScope:
    """Return the scope of a check: a VM or a sandbox in a network namespace.

    For a VM, pass its TAP ``device`` (or a pattern such as ``vmtap-*``) and its ``subnets``.
    ``port`` is the port of the proxy at the VM's gateway. With ``is_strict``, the VM may reach only
    that port. For a sandbox, pass None as ``device``,
    and the addresses and ports of its ``proxies``. ``port`` is not used for a sandbox.
    """
    internet = {version: ipaddress.ip_address(number) for version, number in INTERNET.items()}
    uplinks = devices.uplinks(namespace, internet)
    links = devices.uplinks(namespace, {proxy: proxy.address for proxy in proxies})
    names = {*uplinks.values(), *links.values(), device or ""}
    return CheckScope(
        namespace=namespace,
        device=device,
        subnets=subnets,
        port=port,
        is_strict=is_strict,
        proxies=proxies,
        uplinks=uplinks,
        links=links,
        described=devices.described(namespace, names),
    )


def findings(scope: CheckScope) -> Iterator[Finding]:
    """Yield all findings about a host, in the order in which `ocsf-nft check` prints them.

    Raises AbsentError if the namespace does not exist, UnsupportedError if it can't be entered.
    """
    if sys.platform != "linux":
        yield Finding(
            name="system",
            severity="fatal",
            meaning=f"nftables needs Linux: on {sys.platform} only convert and explain work",
        )
        return
    scope.namespace.identity()
    yield from host_features.findings(scope)
    try:
        ruleset, present = read_ruleset.read(scope.namespace), devices.list_devices(scope.namespace)
    except OcsfNftError as error:
        yield _unread(error)
    else:
        yield from blocking_rules.judge(ruleset, scope)
        yield from bypass_paths.findings(ruleset, present, scope)
        yield from leftovers.findings(leftovers.find_leftovers(ruleset, present, scope))
        yield from weakening_settings.findings(scope)
    if scope.device is not None and not scope.is_strict:
        yield Finding(
            name="strict",
            severity="info",
            meaning="a VM's fence without --strict lets the VM reach the internet and the host's "
            "networks, also without the proxy",
            remedy="fence the guest too, or install with --strict",
        )
    yield from host_settings.service_findings()
    yield from host_settings.sysctl_findings(scope)


def blocking(scope: CheckScope) -> tuple[Finding, ...]:
    """Return only the findings about rules that drop, or may drop, traffic that a fence accepts.

    If the rules can't be read, the result is one finding that reports this.
    """
    try:
        ruleset = read_ruleset.read(scope.namespace)
    except OcsfNftError as error:
        return (_unread(error),)
    return tuple(
        finding
        for finding in blocking_rules.judge(ruleset, scope)
        # Another fence of ocsf-nft may refuse the traffic too.
        if finding.severity == "blocked" or finding.name == blocking_rules.ACTIVE_FENCE
    )


def remove_leftovers(scope: CheckScope) -> Iterator[tuple[leftovers.Leftover, str | None]]:
    """Remove leftovers of an older iptables set-up for VMs; yield each leftover with a result.

    The result is None, or the reason why the leftover remains. Each step of the iteration removes
    one leftover. Raises UnsupportedError, OcsfNftError.
    """
    ruleset = read_ruleset.read(scope.namespace)
    found = leftovers.find_leftovers(ruleset, devices.list_devices(scope.namespace), scope)
    yield from leftovers.remove(found, scope.namespace)


def _unread(error: OcsfNftError) -> Finding:
    cause, _, remedy = str(error).partition(": ")
    return Finding(
        name="ruleset",
        severity="blocked",
        meaning=f"the rules here can't be read, so it is unknown which traffic they drop ({cause})",
        remedy=remedy or None,
    )
