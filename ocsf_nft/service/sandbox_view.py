"""State of a service's sandbox, for people and programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.errors import AbsentError, ConflictError
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.service import fence_facts

if TYPE_CHECKING:
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.flow import Mode
    from ocsf_nft.service.sandbox import Sandbox

#: Source of a sandbox: the configuration file, or a call of the control API.
Origin: TypeAlias = Literal["file", "api"]
#: State of a sandbox. ``waiting``: for its network namespace. ``failed``: it is not watched. The
#: others are states of its fence.
State: TypeAlias = Literal["active", "degraded", "altered", "absent", "waiting", "failed"]
_STATES: Final[dict[FenceState, State]] = {
    FenceState.ACTIVE: "active",
    FenceState.PERMISSIVE: "active",
    FenceState.DEGRADED: "degraded",
    FenceState.PERMISSIVE_DEGRADED: "degraded",
    FenceState.ALTERED: "altered",
    FenceState.ABSENT: "absent",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    """State of a sandbox at one time."""

    name: str
    origin: Origin
    state: State
    mode: Mode
    config: SandboxConfig
    #: Reason for a state that is not active, why a host name in the policy is not resolved, or
    #: changes of the surroundings that weaken the fence.
    fault: str | None
    #: Devices with the guard on the host, or why there is no guard; None if there is none.
    guard: str | None = None
    #: Time when the sandbox was added, in ns since the epoch.
    since_ns: int
    #: Identity of its network namespace; None if it is not watched.
    identity: str | None = None


#: Check of a sandbox's state, which is None if there is none; it may raise an OcsfNftError.
Condition: TypeAlias = Callable[[SandboxView | None], None]


def no_condition(_: object) -> None:
    """Accept any state: the condition of calls without one."""


def must_be_absent(found: SandboxView | None) -> None:
    """Raise ConflictError if there is a sandbox: the condition of adding one."""
    if found is not None:
        raise ConflictError(f"there is a sandbox {found.name} already: change or release it")


def must_exist(found: SandboxView | None) -> None:
    """Raise AbsentError if there is no sandbox: the condition of changing one."""
    if found is None:
        raise AbsentError("there is no such sandbox: add it")


class PutResult(NamedTuple):
    """Result of adding a sandbox, or of changing its policy."""

    is_new: bool
    #: Differences to the policy before, such as "allow: added tcp:192.0.2.1:443".
    changes: tuple[str, ...]


def view_of(sandbox: Sandbox) -> SandboxView:
    """Return the present state of a sandbox."""
    config, watched = sandbox.config, sandbox.watched
    state: State = "waiting" if sandbox.failure is None else "failed"
    mode: Mode = "permissive" if config.permissive else "enforcing"
    fault, guard = sandbox.failure, None
    if watched is not None:
        reports = watched.monitor.reports
        mode = reports.mode
        guard = fence_facts.guard_text(reports.installed)
        if sandbox.failure is None:
            unresolved = "; ".join(f"{name}: {cause}" for name, cause in watched.names.faults())
            state, fault = _STATES[reports.state], reports.fault or reports.installed.degraded
            surroundings = "; ".join(watched.monitor.surroundings.present)
            fault = fault or watched.names.failure or unresolved or surroundings or None
    return SandboxView(
        name=sandbox.name,
        origin=sandbox.origin,
        state=state,
        mode=mode,
        config=config,
        fault=fault,
        guard=guard,
        since_ns=sandbox.since_ns,
        identity=sandbox.identity,
    )
