"""Selection of the packet log records in a kernel log, which also has other messages.

User-space programs can write messages that resemble packet log records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.record import PREFIX_ROOT, Record, Reject
from ocsf_nft.sources import text

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.log_prefixes import Prefixes


class PrefixFilter:
    """Filter of kernel log messages by their log prefix, which contains the sandbox and the rule.

    If ``sandboxes`` is None, all sandboxes are selected. ``foreign`` has log prefixes of other
    firewalls. These prefixes are selected too.
    """

    def __init__(
        self, sandboxes: AbstractSet[str] | None = None, foreign: Prefixes | None = None
    ) -> None:
        self._prefix_starts = (
            (PREFIX_ROOT,)
            if sandboxes is None
            else tuple(f"{PREFIX_ROOT}{sandbox}:" for sandbox in sorted(sandboxes))
        )
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


def author_of_facility(facility: int | str, *, kernel: int | str) -> str | None:
    """Return None if the kernel wrote a log message, otherwise a description of the program.

    The description is ``a program of facility N``. ``facility`` is the message's syslog facility.
    ``kernel`` is the kernel's facility in the same form: 0, or ``kern`` if ``facility`` is a name.
    """
    # RFC 5424, 6.2.1 has the numbers of the facilities.
    return None if facility == kernel else f"a program of facility {facility}"


def reject_forged(author: str, line: str) -> Reject:
    """Return a Reject (a refused log line) for a line that a program wrote, not the kernel.

    ``author`` describes the program, for example ``a program of facility 1``.
    """
    return Reject(kind="forged", reason=f"{author} wrote it, not the kernel", line=line)
