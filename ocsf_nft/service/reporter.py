"""What is to be told becomes events, and events become lines of one sink."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import findings
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.events import Event

#: Events made before other tasks get a turn: about 2 ms of work.
_SLICE: Final = 16


class Reporter:
    """Maps with what is known of each sandbox, and delivers to one sink.

    ``host`` is the machine that is told of; None when that is not known, as for a log of another
    machine.
    """

    def __init__(self, sink: Sink, host: Host | None) -> None:
        self.host = host
        self.events = 0
        self._sink = sink
        self._mappers: dict[str | None, Mapper] = {}
        self._contexts: dict[str, Context] = {}
        self._nothing = Context(host=host)
        self._unknown = Mapper(self._nothing)

    def know(self, sandbox: str, context: Context) -> None:
        """Tell of a sandbox with what is known about it from now on."""
        self._contexts[sandbox] = context
        self._mappers[sandbox] = Mapper(context)

    def context(self, sandbox: str | None = None) -> Context:
        """What is known of a sandbox, or of the host alone."""
        return self._nothing if sandbox is None else self._contexts.get(sandbox, self._nothing)

    async def lines(self, found: Iterable[Attempt | FanOut]) -> list[bytes]:
        """The events of what was found, as JSON; other tasks get their turns meanwhile."""
        lines: list[bytes] = []
        for number, each in enumerate(found, 1):
            lines.append(self._event(each).to_json())
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return lines

    async def deliver(self, lines: Sequence[bytes]) -> None:
        """Hand events to the sink; raises DeliveryError."""
        await self._sink.deliver(lines)
        self.events += len(lines)

    async def emit(self, event: Event) -> None:
        """Deliver one event about ourselves; raises DeliveryError."""
        await self.deliver([event.to_json()])

    def _event(self, found: Attempt | FanOut) -> Event:
        now_ns = time.time_ns()
        if isinstance(found, Attempt):
            mapper = self._mappers.get(found.record.sandbox, self._unknown)
            return mapper.network_activity(found, processed_ns=now_ns)
        return findings.fan_out(self.context(found.sandbox), found, processed_ns=now_ns)
