"""Receiver in memory with faults that a test sets, and the events that it gets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def event(number: int, size: int = 0) -> bytes:
    """Return an event with the attributes that the store needs."""
    return orjson.dumps({"metadata": {"uid": f"uid-{number}"}, "pad": "x" * size})


def events(numbers: Iterable[int]) -> list[bytes]:
    return [event(number) for number in numbers]


def uids(numbers: Iterable[int]) -> list[str]:
    return [f"uid-{number}" for number in numbers]


@dataclass
class Receiver(Sink):
    """Sink for a forwarder.

    It can be ``down`` or ``stuck``. It refuses each message of ``bad`` individually. It refuses a
    batch with one of ``poisonous`` as a whole, from the try ``poisonous_from`` on. It accepts at
    most ``most`` messages of a batch.
    """

    down: bool = False
    stuck: bool = False
    bad: set[str] = field(default_factory=set)
    poisonous: set[str] = field(default_factory=set)
    poisonous_from: int = 1
    most: int = 1 << 30
    repeats_batches: bool = False
    got: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> None:
        if self.down:
            raise DeliveryError("it is down")
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        uids = [message.uid for message in messages]
        self.batches.append(uids)
        self._change.set()
        if self.stuck:
            await asyncio.Event().wait()
        if self.down:
            raise DeliveryError("it is down")
        if self.poisonous & set(uids) and len(self.batches) >= self.poisonous_from:
            raise RefusedError("something is wrong")
        accepted, again = messages[: self.most], messages[self.most :]
        self.got += [each.uid for each in accepted if each.uid not in self.bad]
        self._change.set()
        return BatchResult(
            refused=tuple(Refusal(each, "bad") for each in accepted if each.uid in self.bad),
            again=tuple(again),
            reason="busy" if again else "",
            after_seconds=0.0 if again else None,
        )

    async def has(self, number: int) -> None:
        """Wait until it has ``number`` events."""
        await self._wait_until(lambda: len(self.got) >= number)

    async def tried(self, number: int) -> None:
        """Wait until ``number`` batches have been tried."""
        await self._wait_until(lambda: len(self.batches) >= number)

    async def _wait_until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                self._change.clear()
                await self._change.wait()
