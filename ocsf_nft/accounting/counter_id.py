"""Identity of the counters of a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.flow import account_name

if TYPE_CHECKING:
    from ocsf_nft.accounting.reconciliation import Mode
    from ocsf_nft.record import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterId:
    """Identity of one rule's counters in one sandbox.

    ``epoch`` distinguishes the counters from those that the rule had before. With ``is_permissive``
    they count allowed packets.
    """

    sandbox: str
    rule: str
    epoch: str
    is_permissive: bool = False

    @staticmethod
    def named(sandbox: str, name: str, epoch: str) -> CounterId:
        """Create the identity from the name of an account (:func:`ocsf_nft.flow.account_name`)."""
        rule, colon, _ = name.partition(":")
        return CounterId(sandbox=sandbox, rule=rule, epoch=epoch, is_permissive=bool(colon))

    @property
    def name(self) -> str:
        """Return the name of the account."""
        return account_name(self.rule, is_permissive=self.is_permissive)

    @property
    def mode(self) -> Mode:
        """Return the mode of the fence while the counters count."""
        return "permissive" if self.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict as it is in a record of the rule."""
        return "permit" if self.is_permissive else None
