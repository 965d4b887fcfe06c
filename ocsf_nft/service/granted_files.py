"""Files that the present delivery process may open, and the search for replaced ones.

A file system may not answer, so each inspection of files has a thread of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft import landlock
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service import delivery_files
from ocsf_nft.service.daemon_thread import run_in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocsf_nft.delivery.name_resolver import ResolverFiles
    from ocsf_nft.landlock import Rule
    from ocsf_nft.service.delivery_files import Identities
    from ocsf_nft.service.outlet import Outlet

T = TypeVar("T")

#: Time for an inspection of the files.
_INSPECTION_SECONDS: Final = 5.0


class GrantedFiles:
    """Files that the present delivery process may open; none before the first :meth:`grant`."""

    def __init__(self, *, events: Path, sinks: Path, resolver: ResolverFiles) -> None:
        """Take the paths of the state database, of the sinks' database, and of the resolver."""
        self._events = events
        self._sinks = sinks
        self._resolver = resolver
        self._rules: frozenset[Rule] = frozenset()
        #: The files at the time of the grant.
        self._identities: Identities = {}
        #: Inspection of these files that goes on, in a thread.
        self._inspection: asyncio.Future[Identities] | None = None

    async def grant(self, outlets: Sequence[Outlet]) -> frozenset[Rule]:
        """Create the directories of the sinks; return the rules of a new process for them.

        Raises DeliveryError if a file system does not answer.
        """

        def prepared() -> tuple[frozenset[Rule], Identities]:
            delivery_files.create_directories(outlets, sinks=self._sinks)
            rules = self._rules_for(outlets)
            return rules, delivery_files.identities(rules)

        self._rules, self._identities = await _inspected(prepared)
        return self._rules

    async def suffice(self, outlets: Sequence[Outlet]) -> bool:
        """Return True if the present process may open the files of ``outlets``.

        Raises DeliveryError if a file system does not answer.
        """
        if landlock.abi() == 0:
            return True
        needed = await _inspected(lambda: self._rules_for(outlets))
        return delivery_files.are_allowed(needed, self._rules) and not await self.are_replaced()

    async def are_replaced(self) -> bool:
        """Return True if a file or directory of the present process was replaced.

        Return False if a file system does not answer.
        """
        if landlock.abi() == 0:
            return False
        rules = self._rules
        if self._inspection is None:
            self._inspection = run_in_daemon_thread(
                lambda: delivery_files.identities(rules), "delivery-files"
            )
        inspection = self._inspection
        await asyncio.wait([inspection], timeout=_INSPECTION_SECONDS)
        if not inspection.done():
            return False
        if self._inspection is inspection:
            self._inspection = None
        found = inspection.result()
        # It may be of an earlier process, with other files.
        return found.keys() == self._identities.keys() and found != self._identities

    def _rules_for(self, outlets: Sequence[Outlet]) -> frozenset[Rule]:
        return delivery_files.rules(
            outlets, events=self._events, sinks=self._sinks, resolver=self._resolver
        )


async def _inspected(job: Callable[[], T]) -> T:
    """Return the result of an inspection of files; raises DeliveryError if it takes too long."""
    inspection = run_in_daemon_thread(job, "delivery-files")
    await asyncio.wait([inspection], timeout=_INSPECTION_SECONDS)
    if not inspection.done():
        raise DeliveryError(
            "the files of the sinks can't be inspected: a file system does not answer"
        )
    return inspection.result()
