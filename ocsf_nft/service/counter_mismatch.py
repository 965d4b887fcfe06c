"""Counts of one sandbox that differ and do not match again."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.flows.sandbox_account import Balance

#: Time within which counts that differ match again, for example after a late record.
_SETTLE_SECONDS: Final = 60.0
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class CounterMismatch:
    """Difference between counted packets and packets in events, if it does not settle."""

    def __init__(self) -> None:
        #: When the counts began to differ (monotonic); None while they match.
        self._since: float | None = None
        self._text = ""

    def observe(self, balances: Iterable[Balance], forged: Mapping[str, int] = _NONE) -> None:
        """Note the numbers after a reading of the counters.

        ``forged`` is the number of forged log records by rule. A finding of its own is about them,
        so as many packets may be in events and not counted.
        """
        found = [
            f"{each.counter_mismatch:+d} packets of rule {each.rule}"
            for each in balances
            if each.counter_mismatch > 0 or each.counter_mismatch < -forged.get(each.rule, 0)
        ]
        if not found:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        self._text = ", ".join(found)

    @property
    def fault(self) -> str | None:
        """Return a text about counts that have differed for a minute; None if there are none."""
        if self._since is None or time.monotonic() - self._since < _SETTLE_SECONDS:
            return None
        return f"counted, but in no event (negative: in more events than counted): {self._text}"
