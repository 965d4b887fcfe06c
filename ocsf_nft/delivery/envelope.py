"""Event in the form in which one sink gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Message:
    """Event in the OCSF version of one sink.

    ``uid`` is the event's ``metadata.uid``: it is the same in every version and at each repeated
    delivery. ``line`` is its JSON in UTF-8, without a line end.
    """

    uid: str
    line: bytes

    def event(self) -> Any:
        """Return the event, parsed from its JSON."""
        return orjson.loads(self.line)
