"""Stored events for the sinks, read from the state database of the service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ocsf_nft.errors import DeliveryError, SourceError
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.retention import LAST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.state.state_db import StoredEvent

T = TypeVar("T")


class EventStream:
    """Stored events in the order of their numbers.

    ``path`` is the state database, ``identity`` a text that no other one has, and ``end`` the
    number of its last event.
    """

    def __init__(self, path: Path, identity: str, end: int) -> None:
        self.identity = identity
        #: Number of the last stored event; 0 if no event was ever stored.
        self.end = end
        self._path = path
        self._archive: Archive | None = None
        self._stored = asyncio.Event()

    def advance(self, end: int) -> None:
        """Note that events up to the number ``end`` are stored."""
        self.end = max(self.end, end)
        stored, self._stored = self._stored, asyncio.Event()
        stored.set()

    async def wait_for_event(self, beyond: int) -> None:
        """Wait until there is an event with a number above ``beyond``."""
        while self.end <= beyond:
            await self._stored.wait()

    def read(
        self, beyond: int, until: int, *, events: int = LAST, size: int = LAST
    ) -> list[StoredEvent]:
        """Return the next events with numbers above ``beyond`` up to ``until``, in order.

        Returns at most ``events`` events with at most ``size`` bytes of JSON. The first event is
        returned even if it is larger. Raises DeliveryError.
        """
        return self._query(lambda archive: archive.read(beyond, until, events=events, size=size))

    def count_beyond(self, number: int) -> int:
        """Return the number of stored events with numbers above ``number``.

        Raises DeliveryError.
        """
        return self._query(lambda archive: archive.count_beyond(number))

    def close(self) -> None:
        """Close the database file; a later call opens it again."""
        if self._archive is not None:
            self._archive.__exit__()
            self._archive = None

    def _query(self, query: Callable[[Archive], T]) -> T:
        try:
            # The service may restore the file, and then it is another one.
            if self._archive is not None and self._archive.is_replaced():
                self.close()
            if self._archive is None:
                self._archive = Archive(self._path, self.identity).__enter__()
            return query(self._archive)
        except SourceError as error:
            self.close()
            raise DeliveryError(str(error)) from error
