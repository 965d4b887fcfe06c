"""Identifier of a firewall rule's packet counters.

The identifier changes if the counters are created again and restart at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.flow import account_name

if TYPE_CHECKING:
    from ocsf_nft.accounting.reconciliation import Mode
    from ocsf_nft.record import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterId:
    """Identity of the packet counters of one firewall rule in one sandbox.

    ``epoch`` is a text that changes each time the counters restart at zero. If ``is_permissive`` is
    true, the fence is permissive: it allows the packets that these counters count.
    """

    sandbox: str
    rule: str
    epoch: str
    is_permissive: bool = False

    @staticmethod
    def named(sandbox: str, name: str, epoch: str) -> CounterId:
        """Create a CounterId from the ``name`` of a firewall rule's counters, such as ``egress``.

        The name has the suffix ``:permissive`` if the fence is permissive. ``epoch`` is a text that
        changes each time the counters restart at zero.
        """
        rule, colon, _ = name.partition(":")
        return CounterId(sandbox=sandbox, rule=rule, epoch=epoch, is_permissive=bool(colon))

    @property
    def name(self) -> str:
        """Return the name of the counters, such as ``egress`` or ``egress:permissive``.

        The name is the firewall rule's name, plus the suffix ``:permissive`` if the fence is
        permissive.
        """
        return account_name(self.rule, is_permissive=self.is_permissive)

    @property
    def mode(self) -> Mode:
        """Return the mode of the fence that has these counters: enforcing or permissive."""
        return "permissive" if self.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict on these counters' packets: ``permit``, or None for refused packets.

        The verdict is ``permit`` if the fence is permissive: such a fence only counts and logs
        packets, and refuses none.
        """
        return "permit" if self.is_permissive else None
