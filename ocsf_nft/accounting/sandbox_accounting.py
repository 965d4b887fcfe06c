"""The account of a sandbox: that of each of its rules, and what of it has to be kept."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ocsf_nft.accounting.counter_id import CounterId
from ocsf_nft.accounting.open_incidents import OpenIncidents
from ocsf_nft.accounting.priority import Priority
from ocsf_nft.accounting.reconciliation import Balance
from ocsf_nft.accounting.rule_accounting import RuleAccount
from ocsf_nft.flow import account_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.reconciliation import Mode
    from ocsf_nft.accounting.rule_accounting import AddAttribution
    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.flow import Reading
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record


class SandboxAccount:
    """Takes in what sources and counters say of a sandbox, and gives out attempts."""

    def __init__(
        self,
        sandbox: str,
        *,
        begun_ns: int,
        priority: Priority | None = None,
        add_attribution: AddAttribution = lambda attempt: attempt,
    ) -> None:
        """No packet is from before ``begun_ns``; without ``priority`` nothing is graver.

        ``add_attribution`` is asked once for each attempt, before it is told.
        """
        self.sandbox = sandbox
        #: By the names of accounts.
        self.rules: dict[str, RuleAccount] = {}
        self.opened = OpenIncidents()
        self._priority = priority or Priority()
        self._add_attribution = add_attribution
        self._begun_ns = begun_ns
        #: Accounts whose counters are no more: all that they owe is to be told.
        self._ended: list[RuleAccount] = []

    def new_rule_account(self, name: str, epoch: str, *, begun_ns: int) -> RuleAccount:
        """An account of one rule, by its name, that nothing has been taken in by yet."""
        counter_id = CounterId.named(self.sandbox, name, epoch)
        return RuleAccount(
            counter_id,
            self.opened,
            begun_ns=begun_ns,
            priority=self._priority,
            add_attribution=self._add_attribution,
        )

    def record(
        self, record: Record, now_ns: int, attribution: Attribution | None = None
    ) -> Attempt | None:
        """Take in what the kernel logged, and who did it; the attempt if it is the first of one.

        A record of a rule that has no counters is none of ours.
        """
        account = self.rules.get(_name(record))
        return None if account is None else account.record(record, now_ns, attribution)

    def observe(self, reading: Reading) -> Iterator[None]:
        """Take in a reading; yields now and then, so that other work is not held up."""
        # Counters that the last reading had not were made since.
        since_ns = self.read_ns or self._begun_ns
        for rule, epoch in reading.epochs.items():
            before = self.rules.get(rule)
            account = before
            if account is None or account.epoch != epoch:
                begun_ns = since_ns if before is None else before.read_ns
                self.rules[rule] = account = self.new_rule_account(rule, epoch, begun_ns=begun_ns)
                if before is not None:
                    account.take_over(before)
                    self._ended.append(before)
            yield from account.observe(reading.rules[rule], reading.began_ns, reading.ended_ns)

    def lacks(self, record: Record) -> bool:
        """Whether a record is of counters that no reading has had: the fence's mode has changed."""
        return _name(record) not in self.rules and any(
            account.counter_id.rule == record.rule for account in self.rules.values()
        )

    def renewed_rules(self, reading: Reading) -> tuple[str, ...]:
        """The rules whose counters are others than those of the last reading."""
        return tuple(
            rule
            for rule, epoch in reading.epochs.items()
            if rule in self.rules and self.rules[rule].epoch != epoch
        )

    def aggregate_overflow(self, now_ns: int) -> Iterator[None]:
        """Before :meth:`due`: its long work, yielding now and then."""
        for account in list(self.rules.values()):
            yield from account.aggregate_overflow(now_ns)

    def due(
        self, now_ns: int, *, closing: bool = False
    ) -> Iterator[Attempt | FanOut | IncidentEnd]:
        """What is to be told now; all that is owed, and the end of all, when ``closing``."""
        yield from self.opened.due()
        while self._ended:
            yield from self._ended.pop().due(now_ns, closing=True)
        for account in list(self.rules.values()):
            yield from account.due(now_ns, closing=closing)

    def unread_since(self, reading: Reading) -> Counter[Mode]:
        """How many packets there were between the last reading and this one, by mode."""
        found: Counter[Mode] = Counter({"enforcing": 0, "permissive": 0})
        for name, of_rule in reading.rules.items():
            counter_id = CounterId.named(self.sandbox, name, reading.epochs[name])
            account = self.rules.get(name)
            is_same = account is not None and account.epoch == counter_id.epoch
            found[counter_id.mode] += of_rule.refused.packets
            if account is not None and is_same:
                found[counter_id.mode] -= account.refused.packets
        return found

    @property
    def read_ns(self) -> int | None:
        """When the last reading began; None when there was none."""
        return min((account.read_ns for account in self.rules.values()), default=None)

    def balances(self) -> tuple[Balance, ...]:
        """How each rule stands, as of the last reading."""
        return tuple(
            Balance(
                sandbox=self.sandbox,
                rule=account.counter_id.rule,
                mode=account.counter_id.mode,
                refused=0 if account.counter_id.is_permissive else account.refused.packets,
                let_pass=account.refused.packets if account.counter_id.is_permissive else 0,
                reported=account.reported,
                overflowed=account.overflowed,
                in_flight=account.pending_packets(),
                lost=max(0, account.logged - account.received),
            )
            for _, account in sorted(self.rules.items())
        )


def _name(record: Record) -> str:
    return account_name(record.rule, is_permissive=record.verdict == "permit")
