"""Reader of the packet counters that a fence has in one network namespace, over netlink."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from ocsf_nft import userns
from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import rule_counters
from ocsf_nft.flow import RuleReading, map_uids
from ocsf_nft.netns import HOST, Namespace, call_beside
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from ocsf_nft.fence.rule_counters import RuleCounters
    from ocsf_nft.fence.spec import TableId, Tables
    from ocsf_nft.userns import UserIdMap

_TRIES: Final = 3
#: Temporary errors: the request can be repeated.
_TEMPORARY: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS})
#: Errors of a kernel without nf_tables, or without the netns cookie.
_MISSING_FEATURE: Final = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EPROTONOSUPPORT}
)


class NamespaceReader:
    """Reader of the counters of a fence's tables in one network namespace.

    It opens a netlink socket when it needs one, and again after an error. Each ``deadline`` is a
    time of :func:`time.monotonic`. All methods raise the errors of :meth:`open`. They raise
    FenceError if the kernel does not answer.
    """

    def __init__(
        self,
        namespace: Namespace,
        tables: Tables,
        *,
        sandbox: str,
        identity: str | None = None,
    ) -> None:
        """Set the namespace, the ``tables`` of the fence of ``sandbox`` there, and their rules.

        ``identity`` identifies the namespace in which the fence was installed; None means any
        namespace.
        """
        self.tables = tables
        #: Socket in the same namespace, to enter it although its file may be gone.
        self.beside: socket.socket | None = None
        #: Number of the ruleset (:meth:`current_generation`) at the last reading of all tables.
        self.generation: int | None = None
        self._namespace = namespace
        self._sandbox = sandbox
        self._identity = identity
        self._nftables: Nftables | None = None
        #: Converts user ids of counted flows to our user namespace; None if they are not converted.
        self._users: UserIdMap | None = None
        #: Cookie of the namespace for which ``_users`` was read. It is read once: later, the owning
        #: user namespace may have no process.
        self._cookie: int | None = None

    @property
    def is_open(self) -> bool:
        """Return True if the netlink socket is open."""
        return self._nftables is not None

    def open(self) -> Nftables:
        """Open the netlink socket if it is closed, and return it.

        Raises AbsentError if the namespace is missing or is not the fenced one. Raises
        UnsupportedError if a kernel feature or a privilege is missing, FenceError for other errors.
        """
        if self._nftables is None:
            try:
                self._nftables = self._open_inside()
            except OSError as error:
                raise self._unreadable(error) from error
        return self._nftables

    def close(self) -> None:
        """Close the netlink socket."""
        if self._nftables is not None:
            self._nftables.close()
            self._nftables = None

    def current_generation(self, deadline: float) -> int | None:
        """Return the number of the namespace's ruleset; None if it can't be read now.

        If it is that of the last reading, no counter or set was created again. Packets do not
        change a ruleset.
        """
        nftables = self.open()
        nftables.deadline = deadline
        try:
            return nftables.generation()
        except OSError as error:
            self._close_after(error)
            return None

    def totals(
        self, table: TableId, suffixes: Mapping[str, str], deadline: float
    ) -> Mapping[str, RuleReading]:
        """Return the totals of a table's rules: none if they can't be read at once.

        ``suffixes`` are those of the counters' names, by rule.
        """
        nftables = self.open()
        nftables.deadline = deadline
        try:
            return rule_counters.read_totals(nftables, *table, suffixes)
        except InterruptedDumpError:  # the caller reads one rule after the other
            return {}
        except rule_counters.CrowdedError:
            self.close()  # the rest of the list may still arrive
            return {}
        except OSError as error:
            self._close_after(error)
            return {}
        except BaseException:
            self.close()
            raise

    def rule(self, table: TableId, suffix: str, deadline: float) -> RuleCounters | None:
        """Read the counters and flows of one of a table's rules; return None if they are missing.

        ``suffix`` is that of the counters' names in nftables. User ids are those of this process's
        user namespace. Raises FenceError if the counters are replaced during each of some readings.
        """
        for _ in range(_TRIES):
            try:
                nftables = self.open()  # again after an error
                nftables.deadline = deadline
                found = rule_counters.RuleReader(nftables, *table, suffix).read()
                return None if found is None else self._localize(found)
            except rule_counters.ReplacedError:
                continue
            except OSError as error:
                self._close_after(error)
            except BaseException:
                self.close()  # the rest of a list may still arrive
                raise
        raise FenceError(
            f"the counters of rule {suffix} in {self._namespace} are replaced again and again"
        )

    def _localize(self, found: RuleCounters) -> RuleCounters:
        if self._users is None:
            return found
        return found._replace(reading=map_uids(found.reading, self._users.to_local))

    def _open_inside(self) -> Nftables:
        # A run in the sandbox's own namespace may lack the privilege to enter even this one.
        if self.beside is None or self.beside.fileno() < 0 or self._namespace == HOST:
            return self._namespace.call(self._open_here)
        return call_beside(self.beside, self._open_here)

    def _open_here(self) -> Nftables:
        """Open and return a netlink socket in the calling thread's network namespace.

        Also set ``_users``, which converts the user ids in the counters. Raises AbsentError if the
        fence was installed in another network namespace.
        """
        if self._identity not in {None, Namespace().identity()}:
            raise AbsentError(
                f"{self._namespace} is no longer the namespace in which the fence of sandbox "
                f"{self._sandbox} was installed"
            )
        # While this socket is open, the kernel keeps the namespace.
        nftables = Nftables()
        try:
            if self._cookie != nftables.cookie:
                self._users, self._cookie = userns.user_id_map(), nftables.cookie
        except BaseException:
            nftables.close()
            raise
        return nftables

    def _close_after(self, error: OSError) -> None:
        """Close the socket after an error; raise another error if the first is not temporary."""
        self.close()
        if error.errno not in _TEMPORARY:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> FenceError | UnsupportedError:
        if isinstance(error, PermissionError):
            return UnsupportedError(
                f"the kernel does not let us read counters in {self._namespace}: run as root, or "
                "with CAP_NET_ADMIN over it"
            )
        if error.errno in _MISSING_FEATURE:
            return UnsupportedError(
                f"the kernel has no counters in {self._namespace} ({error.strerror}): it needs "
                "nf_tables and Linux 5.14"
            )
        reason = error.strerror or "the kernel is too slow"
        return FenceError(f"the counters in {self._namespace} can't be read: {reason}")
