"""Identity of the packet counters of one firewall rule."""

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

    ``epoch`` is a text that changes each time the counters begin again at zero. If
    ``is_permissive`` is set, the fence allows the counted packets and only reports them.
    """

    sandbox: str
    rule: str
    epoch: str
    is_permissive: bool = False

    @staticmethod
    def named(sandbox: str, name: str, epoch: str) -> CounterId:
        """Create the identity from an account name, for example ``egress:permissive``.

        An account name is a rule's name, with a suffix for permissive counters
        (:func:`ocsf_nft.flow.account_name`).
        """
        rule, colon, _ = name.partition(":")
        return CounterId(sandbox=sandbox, rule=rule, epoch=epoch, is_permissive=bool(colon))

    @property
    def name(self) -> str:
        """Return the account name: the rule's name, with a suffix for permissive counters."""
        return account_name(self.rule, is_permissive=self.is_permissive)

    @property
    def mode(self) -> Mode:
        """Return the mode of the fence in which these counters count packets."""
        return "permissive" if self.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict in the rule's log records: ``permit`` if permissive, else None."""
        return "permit" if self.is_permissive else None
