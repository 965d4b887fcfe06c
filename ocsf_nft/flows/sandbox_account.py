"""Numbers of a sandbox's packets: counted by the firewall, and reported in events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ocsf_nft.flow import CounterId, account_name
from ocsf_nft.flows.rule_account import RuleAccount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.flow import Mode, Reading
    from ocsf_nft.flows.incidents import IsFinding
    from ocsf_nft.flows.rule_account import AddAttribution
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Numbers of counted and reported packets of a firewall rule, and of dropped log records.

    The numbers begin at 0 when the rule's counters are created.
    """

    sandbox: str
    rule: str
    mode: Mode = "enforcing"
    #: Packets that an enforcing fence has counted.
    refused: int = 0
    #: Packets that a permissive fence has counted.
    allowed: int = 0
    #: Packets in events, without those that the last reading of the counters did not show yet.
    reported: int
    #: Part of ``reported``: packets in events that report several flows together.
    aggregated: int
    #: Counted packets that a later event will report.
    pending: int
    #: Kernel log records that were dropped before ocsf-nft read them.
    dropped: int

    @property
    def counter_mismatch(self) -> int:
        """Return how many counted packets are neither in an event nor stored for a later event.

        Normally the number is 0. It is negative if events report more packets than were counted.
        """
        return self.refused + self.allowed - self.reported - self.pending


class SandboxAccount:
    """Account of a sandbox's packets: converts log records and counter readings to attempts."""

    def __init__(
        self,
        sandbox: str,
        *,
        begun_ns: int,
        preferred: frozenset[str] = frozenset(),
        is_finding: IsFinding = lambda _record, _packets, _questions: False,
        add_attribution: AddAttribution = lambda attempt: attempt,
    ) -> None:
        """Create an empty account for the packets of the sandbox ``sandbox``.

        No packet was counted before ``begun_ns`` (ns since the epoch). Flows to ``preferred``
        addresses have a reserve of separate events. ``add_attribution`` is called exactly once for
        each attempt, and adds the sending process.
        """
        self.sandbox = sandbox
        #: Accounts of the current counters, by account name.
        self.rules: dict[str, RuleAccount] = {}
        self._begun_ns = begun_ns
        self._new_rule = partial(
            RuleAccount, preferred=preferred, is_finding=is_finding, add_attribution=add_attribution
        )
        #: Accounts of counters that no longer exist: all their unreported packets are to be
        #: reported.
        self._ended: list[RuleAccount] = []

    def new_rule_account(self, name: str, epoch: str, *, begun_ns: int) -> RuleAccount:
        """Return an empty account for one firewall rule; the caller must add it to ``rules``.

        ``name`` is its account name, such as ``egress``. No packet was counted before ``begun_ns``
        (ns since the epoch).
        """
        return self._new_rule(CounterId.named(self.sandbox, name, epoch), begun_ns=begun_ns)

    def record(
        self, record: Record, now_ns: int, attribution: Attribution | None = None
    ) -> Attempt | None:
        """Process the kernel's log record of a packet, see :meth:`RuleAccount.record`."""
        # A log record is ignored if the account has no counters of its rule.
        account = self.rules.get(_name(record))
        return None if account is None else account.record(record, now_ns, attribution)

    def doubt_records(self, until_ns: int) -> None:
        """Report no new flow from its log record before its counter is read; see RuleAccount."""
        for account in self.rules.values():
            account.doubted_until_ns = until_ns

    def observe(self, reading: Reading) -> Iterator[None]:
        """Process a reading of the fence's counters in steps.

        Yields None after each step, so that the caller can run other tasks.
        """
        for rule in reading.explained:
            self.rules[rule].note_explained()
        # Counters that the last reading lacked were created after it.
        since_ns = self.read_ns or self._begun_ns
        for rule, epoch in reading.epochs.items():
            before = self.rules.get(rule)
            account = before
            if account is None or account.counter_id.epoch != epoch:
                begun_ns = since_ns if before is None else before.counters.read_ns
                self.rules[rule] = account = self.new_rule_account(rule, epoch, begun_ns=begun_ns)
                if before is not None:
                    if _boot(before.counter_id.epoch) == _boot(epoch):
                        account.counters.take_over(before.counters)
                    self._ended.append(before)
            yield from account.observe(reading.rules[rule], reading)

    def explained_packets(self, now_ms: int) -> dict[str, int]:
        """Return the results of :meth:`RuleAccount.explained_packets`, by account name.

        A rule is left out if its flows must be read anyway.
        """
        found = {name: account.explained_packets(now_ms) for name, account in self.rules.items()}
        return {name: packets for name, packets in found.items() if packets is not None}

    @property
    def expiry_ms(self) -> int | None:
        """Return from when on the flows must be read, because the kernel has deleted some of them.

        The time is by the monotonic clock. It is None if the kernel has no flows.
        """
        found = (each.counters.expiry_ms for each in self.rules.values())
        return min((each for each in found if each is not None), default=None)

    def is_active(self) -> bool:
        """Return True if an event may become due without a new packet."""
        return bool(self._ended) or any(account.is_active() for account in self.rules.values())

    def is_of_new_mode(self, record: Record) -> bool:
        """Return True if a log record shows that the fence has changed its mode.

        Then the account has packet counters of the record's rule only for the other mode.
        """
        # A rule without any counters does not show the fence's earlier mode.
        return _name(record) not in self.rules and any(
            account.counter_id.rule == record.rule for account in self.rules.values()
        )

    def renewed_rules(self, reading: Reading) -> tuple[str, ...]:
        """Return the account names (such as ``egress``) of rules with recreated counters.

        Call this method before :meth:`observe` processes ``reading``.
        """
        return tuple(
            rule
            for rule, epoch in reading.epochs.items()
            if rule in self.rules and self.rules[rule].counter_id.epoch != epoch
        )

    def aggregate_overflow(self, now_ns: int) -> Iterator[None]:
        """Aggregate flows in steps, see :meth:`RuleAccount.aggregate_overflow`."""
        for account in list(self.rules.values()):
            yield from account.aggregate_overflow(now_ns)

    def due(
        self, now_ns: int, *, closing: bool = False, record_wait_ns: int = 0
    ) -> Iterator[Attempt | FanOut | IncidentEnd]:
        """Yield the attempts, scans and ended incidents to be reported now, see RuleAccount."""
        yield from self.due_of_ended(now_ns)
        for account in list(self.rules.values()):
            yield from account.due(now_ns, closing=closing, record_wait_ns=record_wait_ns)

    def due_of_ended(self, now_ns: int) -> Iterator[Attempt | FanOut | IncidentEnd]:
        """Yield what is to be reported of counters that no longer exist, as in :meth:`due`."""
        while self._ended:
            yield from self._ended.pop().due(now_ns, closing=True)

    def unread_since(self, reading: Reading) -> Counter[Mode]:
        """Return how many more packets ``reading`` shows than the previous counter reading.

        Packets of a permissive fence were allowed. Call this method before :meth:`observe`.
        """
        found: Counter[Mode] = Counter({"enforcing": 0, "permissive": 0})
        for name, of_rule in reading.rules.items():
            counter_id = CounterId.named(self.sandbox, name, reading.epochs[name])
            account = self.rules.get(name)
            is_same = account is not None and account.counter_id == counter_id
            found[counter_id.mode] += of_rule.refused.packets
            if account is not None and is_same:
                found[counter_id.mode] -= account.counters.refused.packets
        return found

    @property
    def read_ns(self) -> int | None:
        """Return when the last reading began (ns since the epoch); None if there was none."""
        # Of any rule: a reading lacks the rules without counters.
        return max((account.counters.read_ns for account in self.rules.values()), default=None)

    def balances(self) -> tuple[Balance, ...]:
        """Return the numbers of counted, reported and pending packets for each rule.

        The counted packets are those of the last counter reading.
        """
        return tuple(
            Balance(
                sandbox=self.sandbox,
                rule=account.counter_id.rule,
                mode=account.counter_id.mode,
                refused=0 if account.counter_id.is_permissive else account.counters.refused.packets,
                allowed=account.counters.refused.packets if account.counter_id.is_permissive else 0,
                reported=account.reported - account.counters.unread_packets(),
                aggregated=account.without_flow,
                pending=account.pending_packets(),
                dropped=max(0, account.counters.logged - account.received),
            )
            for _, account in sorted(self.rules.items())
        )


def _boot(epoch: str) -> str:
    """Return the boot id, with which the text of counters begins."""
    return epoch.partition(":")[0]


def _name(record: Record) -> str:
    return account_name(record.rule, is_permissive=record.verdict == "permit")
