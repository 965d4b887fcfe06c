"""Events about frames that left a sandbox by a way that its fence did not see (class 5019)."""

from __future__ import annotations

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
    from collections.abc import Sequence

    from ocsf_nft.flow import Count
    from ocsf_nft.ocsf.context import Context


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
    since_ns = min(since_ns, until_ns)
    device, observables = device_of(context, container_of(context.container))
    links = [visible(link) for link in uplinks]
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=until_ns // 1_000_000,
        start_time=since_ns // 1_000_000,
        end_time=until_ns // 1_000_000,
        severity_id=Severity.HIGH,
        status_id=Status.FAILURE,
        status_detail=(
            "The interface has sent more frames than have passed the fence. Only a process with "
            "CAP_NET_ADMIN or CAP_NET_RAW in the network namespace can send such frames"
        ),
        message=(
            f"{messages.counted(frames.packets, 'frame')} ({frames.bytes} bytes) left sandbox "
            f"{visible(sandbox)} on {', '.join(links)} by a way that its fence did not see."
        ),
        state_id=ConfigState.OTHER,
        state="Bypassed",
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
            "total_frames": total.packets,
            "total_bytes": total.bytes,
        },
        metadata=own_metadata(
            stable_uid("fence bypassed", sandbox, total.packets, since_ns, until_ns),
            until_ns,
            code=EventCode.FENCE_BYPASSED,
            context=context,
            sandbox=sandbox,
        ),
    )
