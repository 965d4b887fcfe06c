"""Events about changes of a fence's surroundings (class 5019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.actors import actor_of_process, container_of, observables_of, unmapped_of
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
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.messages import counted
from ocsf_nft.ocsf.objects import Device
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.fence_state_events import Tampering

#: Changes that an event describes; it counts the others.
MOST_DESCRIBED: Final = 8


def surroundings_changed(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    state: FenceState,
    changes: Sequence[str],
    present: Sequence[str],
    severity: Severity,
    tampering: Tampering | None,
    outcome: str | None,
    time_ns: int,
) -> DeviceConfigStateChange:
    """Return the event that settings of a fence's namespace changed, and weaken the fence.

    ``changes`` are descriptions of the new changes; without them, earlier ones have ended.
    ``present`` are those that are left. ``tampering`` has the process, if it is known. ``outcome``
    is the end of the sentence, such as "all undone 2.1 ms later". ``time_ns`` is the time of the
    event (ns since the epoch, UTC). Equal arguments give the same event uid.
    """
    name = visible(sandbox)
    text = joined(changes)
    if changes:
        sentence = f"The surroundings of the fence of sandbox {name} changed: {text}"
    else:
        sentence = f"Changes of the surroundings of the fence of sandbox {name} have ended"
    actor = None
    unmapped: dict[str, Any] = {
        "sandbox": name,
        "previous_state": state.value,
        "changes": [visible(each) for each in changes[:MOST_DESCRIBED]],
        "present": [visible(each) for each in present[:MOST_DESCRIBED]],
    }
    if tampering is not None and tampering.process is not None:
        actor = actor_of_process(tampering.process)
        unmapped |= unmapped_of(tampering.process)
        process = tampering.process
        sentence += f", by {visible(process.name or 'a process')}[{process.pid}]"
    elif changes:
        sentence += ", by an unknown process"
    is_active = state is FenceState.ACTIVE
    config_state = ConfigState.ENABLED if is_active else ConfigState.OTHER
    device, observables = device_of(context, container_of(context.container))
    is_secure = not present
    level = SecurityLevel.SECURE if is_secure else SecurityLevel.AT_RISK
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=time_ns // 1_000_000,
        severity_id=severity,
        status_id=Status.SUCCESS if is_secure else Status.FAILURE,
        status_detail=shown(outcome),
        message=f"{sentence}{'' if outcome is None else f'; {visible(outcome)}'}.",
        actor=actor,
        state_id=config_state,
        state=state.value if config_state is ConfigState.OTHER else config_state.caption,
        security_level_id=level,
        prev_security_level_id=SecurityLevel.SECURE if changes else SecurityLevel.AT_RISK,
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        cloud=cloud_of(context),
        observables=(*observables, *observables_of(actor)) or None,
        unmapped=unmapped,
        metadata=own_metadata(
            stable_uid("surroundings", sandbox, text, joined(present), time_ns),
            time_ns,
            code=EventCode.SURROUNDINGS_CHANGED,
            context=context,
            sandbox=sandbox,
        ),
    )


def joined(changes: Sequence[str]) -> str:
    """Return descriptions of changes as one text; the last ones are only counted if many."""
    shown_changes = [visible(each) for each in changes[:MOST_DESCRIBED]]
    more = len(changes) - len(shown_changes)
    if more:
        shown_changes.append(counted(more, "more change"))
    return "; ".join(shown_changes)
