"""Reader of a fence's packet counters over netlink, fast enough for two readings a second.

A process with CAP_NET_ADMIN in the sandbox can replace the fence's tables. So the reader ignores
unexpected elements, and limits the time and memory of a reading.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.namespace_reader import NamespaceReader
from ocsf_nft.flow import Reading, account_name, counter_suffix
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Mapping
    from types import TracebackType

    from ocsf_nft.fence.rule_counters import RuleCounters
    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.flow import RuleReading

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_READ_SECONDS: Final = 10.0


class Counters:
    """Reader of the packet counters of an installed fence.

    All methods block, and only one thread may use them at a time. The reader needs CAP_NET_ADMIN
    over the fence's namespaces, and CAP_SYS_ADMIN to enter another namespace.
    """

    def __init__(self, installed: InstalledFence) -> None:
        self._is_permissive = installed.spec.is_permissive
        self._boot = ""
        #: Last reading of each rule with its flows, but without these flows; None of a rule that
        #: has no counters or sets.
        self._latest: dict[str, RuleCounters | None] = {}
        #: How much the totals of rules had grown since then at the last reading that left their
        #: flows out.
        self._growth: dict[str, int] = {}
        spec, sandbox = installed.spec, installed.spec.sandbox
        self._inside = NamespaceReader(
            installed.namespace, spec.tables, sandbox=sandbox, identity=installed.identity
        )
        self._readers = [self._inside]
        if guarded := spec.guard_tables:
            self._readers.append(NamespaceReader(Namespace(), guarded, sandbox=sandbox))

    def __enter__(self) -> Self:
        """Open a socket in each namespace of the fence; raises the errors of :meth:`open`."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the netlink sockets."""
        self.close()

    def open(self) -> None:
        """Open a netlink socket in each namespace of the fence.

        Raises AbsentError if the sandbox's namespace is missing or is not the fenced one. Raises
        UnsupportedError if a kernel feature, a privilege or the boot id is missing. Raises
        FenceError for other errors.
        """
        try:
            self._boot = _BOOT_ID.read_text("ascii").strip()
            for each in self._readers:
                each.open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UnsupportedError(f"{_BOOT_ID} can't be read: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Close the netlink sockets."""
        for each in self._readers:
            each.close()

    @property
    def is_open(self) -> bool:
        """Return True if a socket is open in each namespace of the fence."""
        return all(each.is_open for each in self._readers)

    def enter_beside(self, sock: socket.socket) -> None:
        """Open later sockets in the network namespace of ``sock``, which is in the sandbox."""
        self._inside.beside = sock

    @property
    def rules(self) -> tuple[str, ...]:
        """Return the names of the fence's rules, for example ``egress``.

        If the fence is permissive, each name has a suffix: ``egress:permissive``.
        """
        return _account_names(self._readers, is_permissive=self._is_permissive)

    def absent(self, *, is_permissive: bool) -> tuple[str, ...]:
        """Return the names of the rules without counters in the last reading.

        The fence has the given mode now. Before the first reading, no rule is absent.
        """
        read = [each for each in self._readers if each.generation is not None]
        names = _account_names(read, is_permissive=is_permissive)
        return tuple(name for name in names if self._latest.get(name) is None)

    def read(self, explained: Mapping[str, int] = MappingProxyType({})) -> Reading:
        """Read all counters of the fence, except those of rules without their counters or sets.

        ``explained`` has, by account name, how many packets log records have shown since the last
        reading of a rule's flows. If the rule's total has grown by this number, its flows are not
        read: the result has the totals if the number is 0, else nothing about the rule. The same
        holds if each packet was logged, and only records after the previous reading are missing.
        Raises FenceError if reading fails, lasts 10 s, or finds a set that is too large. Also
        raises the errors of :meth:`open`.
        """
        began_ns, began_ms = time.time_ns(), time.monotonic_ns() // 1_000_000
        deadline = time.monotonic() + _READ_SECONDS
        found: dict[str, RuleCounters | None] = {}
        generations: list[int | None] = []
        for reader in self._readers:
            # Before the counters are read: a change during the reading is seen by the next one.
            generations.append(reader.current_generation(deadline))
            is_same = generations[-1] is not None and generations[-1] == reader.generation
            for table in reader.tables:
                found |= self._read_table(reader, table, explained if is_same else None, deadline)
        new = {
            name: each
            for name, each in found.items()
            if each is not None and each is not self._latest.get(name)
        }
        # Not earlier: what the caller does not get is not known to it. The flows need much memory.
        self._latest = found | {
            name: each._replace(reading=replace(each.reading, elements=None))
            for name, each in new.items()
        }
        for reader, generation in zip(self._readers, generations, strict=True):
            reader.generation = generation
        return Reading(
            epochs={name: each.epoch for name, each in new.items()},
            began_ns=began_ns,
            ended_ns=time.time_ns(),
            began_ms=began_ms,
            ended_ms=time.monotonic_ns() // 1_000_000,
            rules={name: each.reading for name, each in new.items()},
            explained=[name for name, each in found.items() if each and name not in new],
        )

    def _read_table(
        self,
        reader: NamespaceReader,
        table: TableId,
        explained: Mapping[str, int] | None,
        deadline: float,
    ) -> dict[str, RuleCounters | None]:
        """Read the counters of a table's rules; the last reading of a rule with explained packets.

        ``explained`` is the argument of :meth:`read`; None if the ruleset has changed.
        """
        suffixes = _suffixes(reader.tables[table])
        totals = reader.totals(table, suffixes, deadline) if explained else {}
        found: dict[str, RuleCounters | None] = {}
        for rule, suffix in suffixes.items():
            last, packets = self._latest.get(rule), (explained or {}).get(rule)
            now = totals.get(rule)
            if explained is not None and rule in self._latest and last is None:
                found[rule] = None  # absent: it can't have been created since then
                continue
            before = self._growth.pop(rule, 0)
            if (
                last
                and now
                and packets is not None
                and _explains(packets, before, last.reading, now)
            ):
                self._growth[rule] = now.refused.packets - last.reading.refused.packets
                found[rule] = last if packets else last._replace(reading=now)
                continue
            new = self._with_boot(reader.rule(table, suffix, deadline))
            # The kernel has the new number of a ruleset a moment before the new ruleset
            # (nf_tables_commit): a rule is absent if two readings with that number lack it.
            if new is not None or explained is not None:
                found[rule] = new
        return found

    def _with_boot(self, found: RuleCounters | None) -> RuleCounters | None:
        """Return a reading with the boot id in its epoch, which makes the epoch unique."""
        return None if found is None else found._replace(epoch=f"{self._boot}:{found.epoch}")


def _account_names(readers: Iterable[NamespaceReader], *, is_permissive: bool) -> tuple[str, ...]:
    return tuple(
        account_name(rule, is_permissive=is_permissive)
        for reader in readers
        for names in reader.tables.values()
        for rule in names
    )


def _suffixes(rules: Collection[str]) -> dict[str, str]:
    """Return the suffixes of the counters' names of some rules, by the rules' account names."""
    # Both modes, if the fence has changed between enforcing and permissive.
    return {
        account_name(rule, is_permissive=mode): counter_suffix(rule, is_permissive=mode)
        for rule, mode in itertools.product(rules, (False, True))
    }


def _explains(packets: int, before: int, last: RuleReading, now: RuleReading) -> bool:
    """Return True if the rule has logged each packet since ``last``, and the records are known.

    ``packets`` is the number of known records since ``last``. Records of the latest packets may
    still be on their way, but not those of the first ``before`` packets.
    """
    grown, logged = now.refused.packets - last.refused.packets, now.logged - last.logged
    has_grown = packets > 0 or now.refused == last.refused
    is_known = before <= packets <= grown
    return has_grown and is_known and grown == logged and now.overflow == last.overflow
