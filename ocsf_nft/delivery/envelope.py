"""An event on its way to one sink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Message:
    """One event as one sink wants it.

    ``uid`` is its ``metadata.uid``, the same in every version and whenever it is told again;
    ``line`` its JSON in UTF-8, without a line end.
    """

    uid: str
    line: bytes

    def event(self) -> Any:
        """The event, as JSON reads it."""
        return orjson.loads(self.line)
