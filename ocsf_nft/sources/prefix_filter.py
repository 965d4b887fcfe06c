"""Filter that selects packet log records in a log that also has other messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.record import PREFIX_ROOT, Record
from ocsf_nft.sources import text

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.record import Reject


class PrefixFilter:
    """Filter of kernel log messages by their log prefix, which contains the sandbox and the rule.

    If ``sandboxes`` is None, all sandboxes are selected. ``foreign`` has log prefixes of other
    firewalls. These prefixes are selected too.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._prefix_starts = _prefix_starts(sandboxes)
        self._foreign = foreign

    def matches(self, message: str) -> bool:
        """Return True if a log message may have a selected prefix; this is a test before parsing.

        The test does not detect forged messages. After parsing, :meth:`select` checks the real
        prefix.
        """
        # Another firewall's prefix is the text before one of possibly several ``IN=… OUT=``.
        return message.startswith(self._prefix_starts) or (
            self._foreign is not None and any(map(self._is_known, text.possible_prefixes(message)))
        )

    def select(self, found: Record | Reject | None) -> Record | Reject | None:
        """Return ``found``; None if it is another firewall's record whose prefix is not selected.

        ``found`` is a parsed message that :meth:`matches` has accepted. A Reject (an invalid
        record) is returned unchanged.
        """
        # ``matches`` tries each possible prefix of the message, so the real prefix is checked here.
        if isinstance(found, Record) and found.sandbox is None and not self._is_known(found.prefix):
            return None
        return found

    def _is_known(self, prefix: str) -> bool:
        return self._foreign is not None and self._foreign.of(prefix) is not None


def _prefix_starts(sandboxes: AbstractSet[str] | None) -> tuple[str, ...]:
    if sandboxes is None:
        return (PREFIX_ROOT,)
    return tuple(f"{PREFIX_ROOT}{sandbox}:" for sandbox in sorted(sandboxes))
