"""Engine of the control API for a running service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.control.event_log import EventLog
from ocsf_nft.control.sandboxes import Engine
from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ocsf_nft.service.run import Service


def engine_of(service: Service, reload: Callable[[], Awaitable[None]]) -> Engine:
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
    )
