"""Filter for a log that also has other messages: it selects the records that a source reads."""

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

    It selects messages of the named sandboxes (None: of all sandboxes). With ``foreign`` it also
    selects records of other firewalls, if ``foreign`` lists their prefix.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._prefix_starts = _prefix_starts(sandboxes)
        self._foreign = foreign

    def matches(self, message: str) -> bool:
        """Return whether a log message has a selected prefix.

        The author of the message is not checked here, so a program may have forged the message.
        """
        return message.startswith(self._prefix_starts) or (
            self._foreign is not None and any(map(self._is_known, text.possible_prefixes(message)))
        )

    def select(self, found: Record | Reject | None) -> Record | Reject | None:
        """Return ``found``, the parsed form of a matching message, or None if it is not selected.

        A record of another firewall with an unknown prefix is not selected. Its message can match,
        because the message may contain text in the form of a known prefix.
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
