"""Which lines of a shared log are a source's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.record import PREFIX_ROOT, Record
from ocsf_nft.sources import text

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.record import Reject


class Wanted:
    """What claims to be of one of the sandboxes; None means of any.

    With ``foreign``, other firewalls' records as well, if their prefix is known there.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._starts = _starts(sandboxes)
        self._foreign = foreign

    def claims(self, message: str) -> bool:
        """Whether a message says of itself that it is wanted, whoever wrote it."""
        return message.startswith(self._starts) or (
            self._foreign is not None and any(map(self._knows, text.possible_prefixes(message)))
        )

    def taken(self, found: Record | Reject | None) -> Record | Reject | None:
        """What was read of a message that claims it; None when it is no wanted record after all.

        A message may hold what looks like a known prefix, and be a record of another one.
        """
        if isinstance(found, Record) and found.sandbox is None and not self._knows(found.prefix):
            return None
        return found

    def _knows(self, prefix: str) -> bool:
        return self._foreign is not None and self._foreign.of(prefix) is not None


def _starts(sandboxes: AbstractSet[str] | None) -> tuple[str, ...]:
    if sandboxes is None:
        return (PREFIX_ROOT,)
    return tuple(f"{PREFIX_ROOT}{sandbox}:" for sandbox in sorted(sandboxes))
