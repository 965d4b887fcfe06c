"""Events about frames that left a sandbox by a way that its fence did not see (class 5019)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ocsf_nft.ocsf import messages
from ocsf_nft.ocsf.actors import container_of
from ocsf_nft.ocsf.context import cloud_of, device_of, own_metadata
from ocsf_nft.ocsf.enums import (
    ConfigActivityId,
    ConfigState,
    DeviceType,
    SecurityLevel,
    Severity,
    Status,
)
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.events import DeviceConfigStateChange
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.objects import Device
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.flow import Count
    from ocsf_nft.ocsf.context import Context


def gate_blocked(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    uplinks: Sequence[str],
    frames: Count,
    since_ns: int,
    until_ns: int,
) -> DeviceConfigStateChange:
    """Return the event about ``frames`` that have bypassed the hooks of a fence, and were stopped.

    The last gate stopped them at one of ``uplinks``, or at the host's end of one. For the other
    arguments, see :func:`fence_bypassed`.
    """
    return _event(
        context,
        EventCode.GATE_BLOCKED,
        (
            f"{messages.counted(frames.packets, 'frame')} ({frames.bytes} bytes) came to "
            f"{{links}} in sandbox {visible(sandbox)} by a way that its fence did not see, and "
            f"{'was' if frames.packets == 1 else 'were'} stopped by the last gate."
        ),
        (
            "The fence was deleted for a time, or a rule or an interface of another process has "
            "led them past it, or has rewritten them after it. Or a socket has requested a "
            "checksum in place of another field. Only a process with CAP_NET_ADMIN or "
            "CAP_NET_RAW can do this"
        ),
        sandbox=sandbox,
        uplinks=uplinks,
        frames=frames,
        severity=Severity.MEDIUM,
        state="Blocked by the Last Gate",
        since_ns=since_ns,
        until_ns=until_ns,
    )


def fence_bypassed(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    uplinks: Sequence[str],
    frames: Count,
    total: Count,
    since_ns: int,
    until_ns: int,
) -> DeviceConfigStateChange:
    """Return the event about ``frames`` that have bypassed the fence of a sandbox.

    They left on one of ``uplinks`` between ``since_ns`` and ``until_ns``, the present time (both in
    ns since the epoch, UTC). ``total`` has all of them since the watch began.
    """
    return _event(
        context,
        EventCode.FENCE_BYPASSED,
        (
            f"{messages.counted(frames.packets, 'frame')} ({frames.bytes} bytes) left sandbox "
            f"{visible(sandbox)} on {{links}} by a way that its fence did not see."
        ),
        (
            "The interface has sent more frames than have passed the fence. Only a process with "
            "CAP_NET_ADMIN or CAP_NET_RAW in the network namespace can send such frames"
        ),
        sandbox=sandbox,
        uplinks=uplinks,
        frames=frames,
        severity=Severity.HIGH,
        state="Bypassed",
        since_ns=since_ns,
        until_ns=until_ns,
        more={"total_frames": total.packets, "total_bytes": total.bytes},
    )


def _event(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    code: EventCode,
    message: str,
    detail: str,
    *,
    sandbox: str,
    uplinks: Sequence[str],
    frames: Count,
    severity: Severity,
    state: str,
    since_ns: int,
    until_ns: int,
    more: Mapping[str, int] = MappingProxyType({}),
) -> DeviceConfigStateChange:
    since_ns = min(since_ns, until_ns)
    device, observables = device_of(context, container_of(context.container))
    links = [visible(link) for link in uplinks]
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=until_ns // 1_000_000,
        start_time=since_ns // 1_000_000,
        end_time=until_ns // 1_000_000,
        severity_id=severity,
        status_id=Status.FAILURE,
        status_detail=detail,
        message=message.replace("{links}", ", ".join(links)),
        state_id=ConfigState.OTHER,
        state=state,
        security_level_id=SecurityLevel.AT_RISK,
        prev_security_level_id=SecurityLevel.SECURE,
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        cloud=cloud_of(context),
        observables=observables or None,
        unmapped={
            "sandbox": visible(sandbox),
            "interfaces": links,
            "frames": frames.packets,
            "bytes": frames.bytes,
            **more,
        },
        metadata=own_metadata(
            stable_uid(code, sandbox, frames.packets, *more.values(), since_ns, until_ns),
            until_ns,
            code=code,
            context=context,
            sandbox=sandbox,
        ),
    )
