"""Rulesets that were found as installed a moment ago, so that they need not be listed again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence

#: Time after which a ruleset is listed again, although no transaction has changed it.
_SECONDS: Final = 60.0


class RulesetVersion(NamedTuple):
    """What nft's listing of a fence depends on, besides the fence's record.

    A device that is deleted leaves its chains without a transaction, so the interfaces count too.
    """

    generations: tuple[int, ...]
    interfaces: frozenset[tuple[int, str]]


class IntactRulesets:
    """Versions of the rulesets that were found as installed in the last minute, by sandbox."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[InstalledFence, RulesetVersion, float]] = {}

    def has(self, installed: InstalledFence, found: RulesetVersion | None) -> bool:
        """Return True if the version ``found`` of a fence was found as installed a moment ago."""
        known = self._known.get(installed.spec.sandbox)
        if known is None:
            return False
        record, version, until = known
        return record is installed and version == found and time.monotonic() < until

    def add(self, installed: InstalledFence, found: RulesetVersion | None) -> None:
        """Note that the version ``found`` of a fence, read before its listing, is as installed."""
        if found is not None:
            self._known[installed.spec.sandbox] = installed, found, time.monotonic() + _SECONDS

    def remove(self, sandbox: str) -> None:
        """Forget a sandbox."""
        self._known.pop(sandbox, None)
