"""Message to a sink (destination of events): one event as JSON, with its ``metadata.uid``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Message:
    """Event to deliver to one sink, in the OCSF version that is configured for this sink.

    ``uid`` is the event's ``metadata.uid``; it is the same at each repeated delivery. ``line`` is
    the event's JSON in UTF-8, without a line end.
    """

    uid: str
    line: bytes

    def event(self) -> Any:
        """Return the event as decoded JSON."""
        return orjson.loads(self.line)
