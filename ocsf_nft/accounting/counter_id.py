"""Identity of a firewall rule's packet counters: sandbox, rule, mode and epoch.

The mode is enforcing or permissive. The epoch is a text that changes when the counters start at
zero again.
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
    true, the rule allows the packets that it counts, because its fence is permissive.
    """

    sandbox: str
    rule: str
    epoch: str
    is_permissive: bool = False

    @staticmethod
    def named(sandbox: str, name: str, epoch: str) -> CounterId:
        """Create the identity from ``name``, the account name of the counters.

        An account name is the rule's name (``egress``), for permissive counters with a suffix
        (``egress:permissive``). See :func:`ocsf_nft.flow.account_name`.
        """
        rule, colon, _ = name.partition(":")
        return CounterId(sandbox=sandbox, rule=rule, epoch=epoch, is_permissive=bool(colon))

    @property
    def name(self) -> str:
        """Return the account name, such as ``egress``, or ``egress:permissive`` if permissive."""
        return account_name(self.rule, is_permissive=self.is_permissive)

    @property
    def mode(self) -> Mode:
        """Return the mode of the fence while these counters count: enforcing or permissive."""
        return "permissive" if self.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict that the log records of the rule have.

        It is ``permit`` for permissive counters. It is None for enforcing counters, because the log
        prefix of an enforcing rule states no verdict.
        """
        return "permit" if self.is_permissive else None
