"""Reader of a fence's packet counters over netlink, fast enough for two readings a second.

A process with CAP_NET_ADMIN in the sandbox can replace the fence's tables. So the reader ignores
unexpected elements, and limits the time and memory of a reading.
"""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import userns
from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import rule_counters
from ocsf_nft.flow import (
    Reading,
    RuleReading,
    account_name,
    counter_suffix,
    map_uids,
)
from ocsf_nft.netns import HOST, Namespace, call_beside
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Mapping
    from types import TracebackType

    from ocsf_nft.fence.rule_counters import RuleCounters
    from ocsf_nft.fence.spec import TableId, Tables
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.userns import UserIdMap

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_TRIES: Final = 3
_READ_SECONDS: Final = 10.0
#: Temporary errors: the request can be repeated.
_TEMPORARY: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS})
#: Errors of a kernel without nf_tables, or without the netns cookie.
_MISSING_FEATURE: Final = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EPROTONOSUPPORT}
)


@dataclass(slots=True, kw_only=True)
class _NamespaceTables:
    """Tables of a fence in one network namespace, and the netlink socket to read their counters."""

    namespace: Namespace
    #: Identifies the namespace in which the fence was installed; None means any namespace.
    identity: str | None = None
    tables: Tables
    nftables: Nftables | None = field(default=None)
    #: Converts user ids of counted flows to our user namespace; None if they are not converted.
    users: UserIdMap | None = field(default=None)
    #: Cookie of the namespace for which ``users`` was read. It is read once: later, the owning user
    #: namespace may have no process.
    cookie: int | None = field(default=None)
    #: Number of the ruleset (:meth:`Nftables.generation`) at the last reading.
    generation: int | None = field(default=None)


class Counters:
    """Reader of the packet counters of an installed fence.

    All methods block, and only one thread may use them at a time. The reader needs CAP_NET_ADMIN
    over the fence's namespaces, and CAP_SYS_ADMIN to enter another namespace.
    """

    def __init__(self, installed: InstalledFence) -> None:
        self._sandbox = installed.spec.sandbox
        self._is_permissive = installed.spec.is_permissive
        self._boot = ""
        #: Socket in the sandbox's namespace, to enter it although its file may be gone.
        self._beside: socket.socket | None = None
        #: Last reading of each rule with its flows, but without these flows; None of a rule that
        #: has no counters or sets.
        self._latest: dict[str, RuleCounters | None] = {}
        #: How much the totals of rules had grown since then at the last reading that left their
        #: flows out.
        self._growth: dict[str, int] = {}
        spec = installed.spec
        self._namespaces = [
            _NamespaceTables(
                namespace=installed.namespace,
                identity=installed.identity,
                tables=spec.tables,
            )
        ]
        if guarded := spec.guard_tables:
            self._namespaces.append(_NamespaceTables(namespace=Namespace(), tables=guarded))

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
            for entry in self._namespaces:
                self._open(entry)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UnsupportedError(f"{_BOOT_ID} can't be read: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Close the netlink sockets."""
        for entry in self._namespaces:
            _close(entry)

    @property
    def is_open(self) -> bool:
        """Return True if a socket is open in each namespace of the fence."""
        return all(entry.nftables is not None for entry in self._namespaces)

    def enter_beside(self, sock: socket.socket) -> None:
        """Open later sockets in the network namespace of ``sock``, which is in the sandbox."""
        self._beside = sock

    @property
    def rules(self) -> tuple[str, ...]:
        """Return the names of the fence's rules, for example ``egress``.

        If the fence is permissive, each name has a suffix: ``egress:permissive``.
        """
        return _account_names(self._namespaces, is_permissive=self._is_permissive)

    def absent(self, *, is_permissive: bool) -> tuple[str, ...]:
        """Return the names of the rules without counters in the last reading.

        The fence has the given mode now. Before the first reading, no rule is absent.
        """
        read = [each for each in self._namespaces if each.generation is not None]
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
        for entry in self._namespaces:
            # Before the counters are read: a change during the reading is seen by the next one.
            generations.append(self._generation(entry, deadline))
            is_same = generations[-1] is not None and generations[-1] == entry.generation
            for table in entry.tables:
                found |= self._read_table(entry, table, explained if is_same else None, deadline)
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
        for entry, generation in zip(self._namespaces, generations, strict=True):
            entry.generation = generation
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
        entry: _NamespaceTables,
        table: TableId,
        explained: Mapping[str, int] | None,
        deadline: float,
    ) -> dict[str, RuleCounters | None]:
        """Read the counters of a table's rules; the last reading of a rule with explained packets.

        ``explained`` is the argument of :meth:`read`; None if the ruleset has changed.
        """
        family, name = table
        suffixes = _suffixes(entry.tables[table])
        totals = self._totals(entry, family, name, suffixes, deadline) if explained else {}
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
            new = self._read(entry, family, name, suffix, deadline)
            # The kernel has the new number of a ruleset a moment before the new ruleset
            # (nf_tables_commit): a rule is absent if two readings with that number lack it.
            if new is not None or explained is not None:
                found[rule] = new
        return found

    def _generation(self, entry: _NamespaceTables, deadline: float) -> int | None:
        """Return the number of the namespace's ruleset; None if it can't be read now.

        If it is that of the last reading, no counter or set was created again. Packets do not
        change a ruleset.
        """
        nftables = self._open(entry)
        nftables.deadline = deadline
        try:
            return nftables.generation()
        except OSError as error:
            _close(entry)
            if error.errno not in _TEMPORARY:
                raise _unreadable(entry.namespace, error) from error
            return None

    def _totals(
        self,
        entry: _NamespaceTables,
        family: str,
        table: str,
        suffixes: Mapping[str, str],
        deadline: float,
    ) -> Mapping[str, RuleReading]:
        """Return the totals of a table's rules: none if they can't be read at once.

        ``suffixes`` are those of the counters' names, by rule.
        """
        nftables = self._open(entry)
        nftables.deadline = deadline
        try:
            return rule_counters.read_totals(nftables, family, table, suffixes)
        except InterruptedDumpError:  # the caller reads one rule after the other
            return {}
        except rule_counters.CrowdedError:
            _close(entry)  # the rest of the list may still arrive
            return {}
        except OSError as error:
            _close(entry)
            if error.errno not in _TEMPORARY:
                raise _unreadable(entry.namespace, error) from error
            return {}
        except BaseException:
            _close(entry)
            raise

    def _read(
        self, entry: _NamespaceTables, family: str, table: str, rule: str, deadline: float
    ) -> RuleCounters | None:
        """Read one rule's counters and flows; return None if they are missing.

        ``rule`` is the suffix of the counters' names in nftables. ``deadline`` is a time of
        :func:`time.monotonic`.
        """
        for _ in range(_TRIES):
            try:
                nftables = self._open(entry)  # again after an error
                nftables.deadline = deadline
                found = rule_counters.RuleReader(nftables, family, table, rule).read()
                return None if found is None else self._localize(entry, found)
            except rule_counters.ReplacedError:
                continue
            except OSError as error:
                _close(entry)
                if error.errno not in _TEMPORARY:
                    raise _unreadable(entry.namespace, error) from error
            except BaseException:
                _close(entry)  # the rest of a list may still arrive
                raise
        raise FenceError(
            f"the counters of rule {rule} in {entry.namespace} are replaced again and again"
        )

    def _localize(self, entry: _NamespaceTables, found: RuleCounters) -> RuleCounters:
        """Return a reading with the boot id in its epoch, and with converted user ids.

        The boot id makes the epoch unique across reboots. ``entry.users`` converts user ids to this
        process's user namespace.
        """
        reading = found.reading
        if entry.users is not None:
            reading = map_uids(reading, entry.users.to_local)
        return found._replace(epoch=f"{self._boot}:{found.epoch}", reading=reading)

    def _open(self, entry: _NamespaceTables) -> Nftables:
        if entry.nftables is None:
            try:
                entry.nftables = self._call_inside(entry, lambda: self._open_here(entry))
            except OSError as error:
                raise _unreadable(entry.namespace, error) from error
        return entry.nftables

    def _call_inside(self, entry: _NamespaceTables, work: Callable[[], Nftables]) -> Nftables:
        beside = self._beside
        # A run in the sandbox's own namespace may lack the privilege to enter even this one.
        is_own = entry.namespace == HOST or entry is not self._namespaces[0]
        if beside is None or beside.fileno() < 0 or is_own:
            return entry.namespace.call(work)
        return call_beside(beside, work)

    def _open_here(self, entry: _NamespaceTables) -> Nftables:
        """Open and return a netlink socket in the calling thread's network namespace.

        Also set ``entry.users``, which converts the user ids in the counters to user ids of this
        process. Raises AbsentError if the fence was installed in another network namespace.
        """
        if entry.identity not in {None, Namespace().identity()}:
            raise AbsentError(
                f"{entry.namespace} is no longer the namespace in which the fence of sandbox "
                f"{self._sandbox} was installed"
            )
        # While this socket is open, the kernel keeps the namespace.
        nftables = Nftables()
        try:
            if entry.cookie != nftables.cookie:
                entry.users, entry.cookie = userns.user_id_map(), nftables.cookie
        except BaseException:
            nftables.close()
            raise
        return nftables


def _account_names(
    namespaces: Iterable[_NamespaceTables], *, is_permissive: bool
) -> tuple[str, ...]:
    return tuple(
        account_name(rule, is_permissive=is_permissive)
        for entry in namespaces
        for names in entry.tables.values()
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


def _close(entry: _NamespaceTables) -> None:
    if entry.nftables is not None:
        entry.nftables.close()
        entry.nftables = None


def _unreadable(namespace: Namespace, error: OSError) -> FenceError | UnsupportedError:
    if isinstance(error, PermissionError):
        return UnsupportedError(
            f"the kernel does not let us read counters in {namespace}: run as root, or with "
            "CAP_NET_ADMIN over it"
        )
    if error.errno in _MISSING_FEATURE:
        return UnsupportedError(
            f"the kernel has no counters in {namespace} ({error.strerror}): it needs nf_tables "
            "and Linux 5.14"
        )
    return FenceError(
        f"the counters in {namespace} can't be read: {error.strerror or 'the kernel is too slow'}"
    )
