"""Parts of a service that the control API calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.config.attach import AttachConfig
    from ocsf_nft.control.event_log import EventLog
    from ocsf_nft.service.caller import Caller
    from ocsf_nft.service.health import Fault
    from ocsf_nft.service.status import Status

Origin: TypeAlias = Literal["file", "api"]
State: TypeAlias = Literal["active", "degraded", "altered", "absent", "waiting", "failed"]
ModeName: TypeAlias = Literal["enforcing", "permissive"]


class View(Protocol):
    """State of a sandbox, as the engine of the service sees it."""

    @property
    def name(self) -> str:
        """Return the name."""
        ...

    @property
    def origin(self) -> Origin:
        """Return where the sandbox comes from."""
        ...

    @property
    def state(self) -> State:
        """Return the state of the fence."""
        ...

    @property
    def mode(self) -> ModeName:
        """Return the mode of the fence."""
        ...

    @property
    def config(self) -> SandboxConfig:
        """Return the present configuration."""
        ...

    @property
    def fault(self) -> str | None:
        """Return the cause of the state as one sentence, or None."""
        ...

    @property
    def since_ns(self) -> int:
        """Return the time when the sandbox was added, in ns since the epoch."""
        ...

    @property
    def identity(self) -> str | None:
        """Return the identity of its network namespace; None if it is not watched."""
        ...


#: Condition of a change: it gets the state of the sandbox, or None if there is none.
Condition: TypeAlias = "Callable[[View | None], None]"


class Change(Protocol):
    """Result of adding or changing a sandbox."""

    @property
    def is_new(self) -> bool:
        """Return True if the sandbox was added."""
        ...

    @property
    def changes(self) -> Sequence[str]:
        """Return the differences to the policy before, as texts."""
        ...


class Sandboxes(Protocol):
    """Sandboxes of a service, in one order of calls for each sandbox; see :class:`Service`."""

    async def put(
        self, sandbox: SandboxConfig, caller: Caller | None, require: Condition
    ) -> Change:
        """Add a sandbox, or change its policy; return when its fence is active.

        ``require`` is called with the present state before, and may raise an error.
        """
        ...

    async def release(
        self, name: str, caller: Caller | None, require: Condition, *, keeps_fence: bool = False
    ) -> Status:
        """Release a sandbox; return its final status.

        ``require`` is that of :meth:`put`. With ``keeps_fence``, its fence stays.
        """
        ...

    def view(self, name: str) -> View:
        """Return the state of a sandbox; raise AbsentError if there is none."""
        ...

    def views(self) -> Sequence[View]:
        """Return the states of all sandboxes, sorted by name."""
        ...

    async def status(self, name: str) -> Status | None:
        """Return the packet counts of a sandbox; None while it has no fence.

        Raises AbsentError if there is no such sandbox.
        """
        ...


class SinkState(Protocol):
    """State of a sink."""

    @property
    def name(self) -> str:
        """Return the name."""
        ...

    @property
    def fault(self) -> str | None:
        """Return the cause of the state as one sentence, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Parts of a service for the control API: its sandboxes, events, health and reload.

    ``state_dir`` is the state directory. ``reload`` reads the configuration file again and applies
    it; it may raise an OcsfNftError. ``attach`` returns the present
    ``[[attach]]`` tables.
    """

    state_dir: Path
    sandboxes: Sandboxes
    events: EventLog
    faults: Callable[[], Sequence[Fault]]
    sinks: Callable[[], Sequence[SinkState]]
    reload: Callable[[], Awaitable[None]]
    attach: Callable[[], Sequence[AttachConfig]] = lambda: ()
