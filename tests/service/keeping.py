"""What keeps events in place of a store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Kept:
    """Events in memory, and positions of sources; each keeping takes some ``seconds``, or fails."""

    seconds: float = 0.0
    fails: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    tried: list[bytes] = field(default_factory=list)
    positions: dict[str, str] = field(default_factory=dict)

    async def keep(self, lines: Sequence[bytes], *, source: str = "", position: str = "") -> None:
        self.tried = list(lines)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise DeliveryError("the disk is full")
        self.events += map(orjson.loads, lines)
        if source:
            self.positions[source] = position

    async def wait_for_class(self, uid: int) -> None:
        async with asyncio.timeout(10):
            while not self.of_class(uid):  # noqa: ASYNC110 - nobody else waits
                await asyncio.sleep(0.001)

    def of_class(self, uid: int) -> list[dict[str, Any]]:
        return [event for event in self.events if event["class_uid"] == uid]
