"""Facts about an installed fence, and events with them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ocsf_nft.fence import guard_conditions, listing
from ocsf_nft.ocsf.context import Context, Proxy
from ocsf_nft.ocsf.fence_state_events import FenceState, fence_state

if TYPE_CHECKING:
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.ocsf.fence_state_events import PolicyChange, SandboxEnd, Tampering


def context(
    installed: InstalledFence,
    host: Host | None,
    sandbox: SandboxConfig | None = None,
) -> Context:
    """Return the facts about a sandbox that its events need: host, proxies, uplinks and rules.

    ``sandbox`` is its configuration, if known.
    """
    is_pod = installed.spec.profile == "sidecar"
    return Context(
        host=host,
        container=None if sandbox is None else sandbox.event_container,
        labels=() if sandbox is None else sandbox.event_labels,
        tenant_uid=None if sandbox is None else sandbox.tenant_uid,
        severities=() if sandbox is None else sandbox.severities,
        proxies=tuple(
            Proxy(address=proxy.address, port=proxy.port) for proxy in installed.spec.proxies
        ),
        # The proxy in a pod may use any interface, so no interface shows a packet's direction.
        uplinks=frozenset(() if is_pod else installed.around.uplinks),
        rules={
            fact.name: f"{fact.family}/{fact.table}/{fact.chain}/{fact.handle}"
            for fact in listing.logging_rules(installed.listings.values())
        },
    )


def state_event(  # noqa: PLR0913 - each is one fact of the event, named at the call
    installed: InstalledFence,
    host: Host | None,
    *,
    before: FenceState,
    after: FenceState,
    reason: str | None = None,
    tampering: Tampering | None = None,
    change: PolicyChange | None = None,
    end: SandboxEnd | None = None,
    sandbox: SandboxConfig | None = None,
    guard: str = "",
    is_regular: bool = False,
) -> DeviceConfigStateChange:
    """Return the event about a change of a fence's state; the event's time is now.

    ``before`` is the last reported state. ``reason`` is the cause of a fault, or describes the
    change. ``is_regular`` marks an intended removal of the fence, and prevents severity Critical.
    ``sandbox`` is the configuration of the sandbox, if known. The other arguments are those of
    :func:`fence_state`.
    """
    return fence_state(
        context(installed, host, sandbox),
        sandbox=installed.spec.sandbox,
        before=before,
        after=after,
        time_ns=time.time_ns(),
        tables=sorted(installed.listings),
        transport=installed.transport,
        reason=reason,
        tampering=tampering,
        change=change,
        end=end,
        addresses={each.name: [*map(str, each.addresses)] for each in installed.spec.resolved},
        guard=guard or guard_note(installed),
        is_regular=is_regular,
    )


def guard_note(installed: InstalledFence) -> str:
    """Return why a fence has no guard on the host, or what its guard can't check; else empty."""
    spec, around = installed.spec, installed.around
    if spec.profile == "sidecar":
        return "no guard: it can't recognise the users of a sidecar proxy"
    if spec.finds_guard and around.host.absence:
        return around.host.absence
    if spec.finds_guard and spec.guard_device is not None and spec.is_permissive:
        return "its guard on the host allows all packets too"
    unknown = guard_conditions.unknown(spec, around) if spec.guard_device is not None else ""
    return f"its guard does not know, and check, the sandbox's {unknown}" if unknown else ""


def guard_text(installed: InstalledFence) -> str | None:
    """Return the guarded devices and the limits of the guard, or why there is none; None if off."""
    devices = ", ".join(end.name for end in installed.around.host.ends)
    return "; ".join(filter(None, (devices, guard_note(installed)))) or None


def state_of(installed: InstalledFence) -> FenceState:
    """Return the state of an unaltered fence: ACTIVE, or PERMISSIVE if it only reports packets.

    If the fence can't log packets, the state is DEGRADED or PERMISSIVE_DEGRADED instead.
    """
    is_well = installed.degraded is None
    if installed.spec.is_permissive:
        return FenceState.PERMISSIVE if is_well else FenceState.PERMISSIVE_DEGRADED
    return FenceState.ACTIVE if is_well else FenceState.DEGRADED
