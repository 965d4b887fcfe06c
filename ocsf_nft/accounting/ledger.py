"""The account of a sandbox: that of each of its rules, and what of it has to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.accounting.balance import Balance
from ocsf_nft.accounting.gravity import Gravity
from ocsf_nft.accounting.opened import Opened
from ocsf_nft.accounting.rule import RuleAccount
from ocsf_nft.accounting.whose import Whose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt, Ended, FanOut
    from ocsf_nft.flow import Reading
    from ocsf_nft.record import Record


class Ledger:
    """Takes in what sources and counters say of a sandbox, and gives out attempts."""

    def __init__(self, sandbox: str, *, begun_ns: int, gravity: Gravity | None = None) -> None:
        """No packet is from before ``begun_ns``; without ``gravity`` nothing is graver."""
        self.sandbox = sandbox
        self.rules: dict[str, RuleAccount] = {}
        self.opened = Opened()
        self._gravity = gravity or Gravity()
        self._begun_ns = begun_ns
        #: Accounts whose counters are no more: all that they owe is to be told.
        self._ended: list[RuleAccount] = []

    def account(self, rule: str, epoch: str, *, begun_ns: int) -> RuleAccount:
        """An account of one rule that nothing has been taken in by yet."""
        whose = Whose(sandbox=self.sandbox, rule=rule, epoch=epoch)
        return RuleAccount(whose, self.opened, begun_ns=begun_ns, gravity=self._gravity)

    def record(self, record: Record, now_ns: int) -> Attempt | None:
        """Take in what the kernel logged; the attempt if it is the first of one.

        A record of a rule that has no counters is none of ours.
        """
        account = self.rules.get(record.rule)
        return None if account is None else account.record(record, now_ns)

    def observe(self, reading: Reading) -> Iterator[None]:
        """Take in a reading; yields now and then, so that other work is not held up."""
        for rule, epoch in reading.epochs.items():
            before = self.rules.get(rule)
            account = before
            if account is None or account.epoch != epoch:
                begun_ns = self._begun_ns if before is None else before.read_ns
                self.rules[rule] = account = self.account(rule, epoch, begun_ns=begun_ns)
                if before is not None:
                    account.take_over(before)
                    self._ended.append(before)
            yield from account.observe(reading.rules[rule], reading.began_ns, reading.ended_ns)

    def renewed(self, reading: Reading) -> tuple[str, ...]:
        """The rules whose counters are others than those of the last reading."""
        return tuple(
            rule
            for rule, epoch in reading.epochs.items()
            if rule in self.rules and self.rules[rule].epoch != epoch
        )

    def fold(self, now_ns: int) -> Iterator[None]:
        """Before :meth:`due`: its long work, yielding now and then."""
        for account in list(self.rules.values()):
            yield from account.fold(now_ns)

    def due(self, now_ns: int, *, closing: bool = False) -> Iterator[Attempt | FanOut | Ended]:
        """What is to be told now; all that is owed, and the end of all, when ``closing``."""
        yield from self.opened.due()
        while self._ended:
            yield from self._ended.pop().due(now_ns, closing=True)
        for account in list(self.rules.values()):
            yield from account.due(now_ns, closing=closing)

    def unread_since(self, reading: Reading) -> int:
        """How many packets were refused between the last reading and this one."""
        return sum(
            of_rule.refused.packets - (account.refused.packets if is_same else 0)
            for rule, of_rule in reading.rules.items()
            if (account := self.rules.get(rule)) is not None
            for is_same in (account.epoch == reading.epochs[rule],)
        )

    @property
    def read_ns(self) -> int | None:
        """When the last reading began; None when there was none."""
        return min((account.read_ns for account in self.rules.values()), default=None)

    def balances(self) -> tuple[Balance, ...]:
        """How each rule stands, as of the last reading."""
        return tuple(
            Balance(
                sandbox=self.sandbox,
                rule=rule,
                refused=account.refused.packets,
                reported=account.reported,
                overflowed=account.overflowed,
                in_flight=account.in_flight(),
                lost=max(0, account.logged - account.received),
            )
            for rule, account in sorted(self.rules.items())
        )
