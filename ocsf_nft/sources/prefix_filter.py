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
    """Filter of kernel log messages by their log prefix, which names the sandbox and the rule.

    ``sandboxes`` are the sandboxes whose messages are selected; None selects all sandboxes.
    ``foreign`` has the log prefixes of other firewalls whose messages are selected too. If
    ``foreign`` is None, no message of another firewall is selected.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._prefix_starts = _prefix_starts(sandboxes)
        self._foreign = foreign

    def matches(self, message: str) -> bool:
        """Return True if a log message seems to have a selected prefix.

        The prefix of another firewall is the text before an ``IN=… OUT=``. A message may contain
        several such texts, so :meth:`select` checks the parsed record again. The writer of the
        message is not checked, so a program may have forged the message.
        """
        return message.startswith(self._prefix_starts) or (
            self._foreign is not None and any(map(self._is_known, text.possible_prefixes(message)))
        )

    def select(self, found: Record | Reject | None) -> Record | Reject | None:
        """Return the parsed message; None for another firewall's record with an unknown prefix.

        ``found`` is the parsed message, which :meth:`matches` has accepted. :meth:`matches` also
        accepts a message with a known prefix at a wrong position, so the prefix is checked again.
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
