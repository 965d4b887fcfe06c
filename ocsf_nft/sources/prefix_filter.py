"""Selection of the lines of a shared log that a source reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.record import PREFIX_ROOT, Record
from ocsf_nft.sources import text

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.record import Reject


class PrefixFilter:
    """Filter for the records of the given sandboxes (None: of all sandboxes).

    With ``foreign`` it also selects records of other firewalls whose prefix is listed there.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._prefix_starts = _prefix_starts(sandboxes)
        self._foreign = foreign

    def matches(self, message: str) -> bool:
        """Return whether a message has a selected prefix; its author is not checked."""
        return message.startswith(self._prefix_starts) or (
            self._foreign is not None and any(map(self._is_known, text.possible_prefixes(message)))
        )

    def select(self, found: Record | Reject | None) -> Record | Reject | None:
        """Return ``found``, the result of reading a matching message, if it is selected.

        Returns None for a foreign record whose prefix is unknown: a message may contain text in the
        form of a known prefix, and be a record with another prefix.
        """
        if isinstance(found, Record) and found.sandbox is None and not self._is_known(found.prefix):
            return None
        return found

    def _is_known(self, prefix: str) -> bool:
        return self._foreign is not None and self._foreign.of(prefix) is not None


def _prefix_starts(sandboxes: AbstractSet[str] | None) -> tuple[str, ...]:
    if sandboxes is None:
        return (PREFIX_ROOT,)
    return tuple(f"{PREFIX_ROOT}{sandbox}:" for sandbox in sorted(sandboxes))
