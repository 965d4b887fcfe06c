"""Parts of a service that the control API calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ocsf_nft.control.event_log import EventLog
from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from ocsf_nft.config.attach import AttachConfig
    from ocsf_nft.service.delivery_answers import SinkStatus
    from ocsf_nft.service.health import Fault
    from ocsf_nft.service.run import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Parts of a service for the control API: its sandboxes, events, health and reload.

    ``state_dir`` is the state directory. ``reload`` reads the configuration file again and applies
    it; it may raise an OcsfNftError. ``attach`` returns the present ``[[attach]]`` tables.
    ``is_delivery`` returns True for the id of the delivery process, which may call nothing.
    """

    state_dir: Path
    sandboxes: Service
    events: EventLog
    faults: Callable[[], Sequence[Fault]]
    sinks: Callable[[], Sequence[SinkStatus]]
    reload: Callable[[], Coroutine[Any, Any, None]]
    attach: Callable[[], Sequence[AttachConfig]]
    is_delivery: Callable[[int], bool]


def engine_of(service: Service, reload: Callable[[], Coroutine[Any, Any, None]]) -> Engine:
    """Return the engine that serves the sandboxes and events of a running service."""
    database = service.store.database
    return Engine(
        state_dir=service.config.state_dir,
        sandboxes=service,
        events=EventLog(database.path, lambda: database.end),
        faults=lambda: health.all_faults(service),
        sinks=lambda: service.delivery.sinks,
        reload=reload,
        attach=lambda: service.config.attach,
        is_delivery=service.delivery.has_run,
    )
