"""Read the counters of a fence: often, cheaply and without a process.

The kernel tells a set in parts of some hundred elements while packets come in, and goes on by
position (nf_tables_api.c). Where elements are added meanwhile others are told again, thousands of
them in a new flood, and where some are forgotten others are not told at all; it says nothing of
either, nor of a new generation of the ruleset. So an element counts as it was told last, and what
is missing shows in ``refused`` until the next reading.

Whoever has CAP_NET_ADMIN in the sandbox's namespace can put anything in the place of the fence:
what isn't as ours is left out, and time and memory are bounded.
"""

from __future__ import annotations

import errno
import itertools
import operator
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft import netlink, nfnetlink, userns
from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import ruleset
from ocsf_nft.fence.counter_elements import Elements
from ocsf_nft.flow import (
    KINDS,
    Count,
    Element,
    Kind,
    Reading,
    RuleReading,
    account_name,
    counting_name,
    renumbered,
)
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from ocsf_nft.fence.state import Installed
    from ocsf_nft.userns import Users

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_GETTABLE: Final = 1
_NFT_MSG_GETSET: Final = 10
_NFT_MSG_GETSETELEM: Final = 13
_NFT_MSG_GETOBJ: Final = 19
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_HANDLE: Final = 4
_NFTA_TABLE: Final = 1  # of sets, their elements and objects alike; so is the name
_NFTA_NAME: Final = 2
_NFTA_SET_TIMEOUT: Final = 11
_NFTA_SET_HANDLE: Final = 16
_NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
_NFTA_OBJ_TYPE: Final = 3
_NFTA_OBJ_DATA: Final = 4
_NFTA_OBJ_HANDLE: Final = 6
_NFTA_COUNTER_BYTES: Final = 1
_NFTA_COUNTER_PACKETS: Final = 2
_NFT_OBJECT_COUNTER: Final = 1

#: The length of the keys (ocsf_nft.flow) and the size of the sets (accounting.nft).
_KEY_BYTES: Final[Mapping[Kind, int]] = {"flows4": 16, "flows6": 28, "others": 12}
_SIZES: Final[Mapping[Kind, int]] = {"flows4": 16_384, "flows6": 16_384, "others": 1_024}
#: The kernel goes on in a list by position, so it tells no more elements than there are places in
#: the set, told twice or not. Twice that is not a set of ours.
_MOST_TIMES: Final = 2
_TRIES: Final = 3
_READ_SECONDS: Final = 10.0
#: What passes: the question can be put again.
_PASSING: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS})
#: What a kernel answers that has no nf_tables, or no cookie for a namespace.
_UNKNOWN: Final = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EPROTONOSUPPORT}
)
_NUMBER32: Final = struct.Struct("!I")
_DATA: Final = operator.attrgetter("data")


@dataclass(slots=True, kw_only=True)
class _Place:
    """A namespace that tables of a fence are in, and these.

    ``identity`` is that of the namespace, where it has to be a certain one; ``users`` how its users
    are numbered here, None when as they are there.
    """

    namespace: Namespace
    identity: str | None = None
    tables: tuple[ruleset.Table, ...]
    nftables: Nftables | None = field(default=None)
    users: Users | None = field(default=None)


class _Marks(NamedTuple):
    """What is known of a rule without its elements.

    ``handles`` are the kernel's numbers of the table and what is in it: within a namespace no
    table has the number of an earlier one, and nothing in a table that of an earlier thing.
    """

    handles: tuple[int, ...]
    timeouts_ms: Mapping[Kind, int]
    logged: Count
    overflow: Count
    refused: Count


class _ReplacedError(Exception):
    """The counters were made anew while they were read."""


class Counters:
    """The counters of an installed fence; for one thread at a time, all of it blocks.

    Opened, it has a socket in each namespace that the fence is in, so that no later reading has to
    enter one; and so these namespaces last at least as long as it is open. Needs CAP_NET_ADMIN over
    them, CAP_SYS_ADMIN to enter what is not the process's own.
    """

    def __init__(self, installed: Installed) -> None:
        self._sandbox = installed.spec.sandbox
        self._is_permissive = installed.spec.is_permissive
        self._boot = ""
        spec = installed.spec
        self._places = [
            _Place(
                namespace=installed.namespace,
                identity=installed.identity,
                tables=ruleset.tables(spec),
            )
        ]
        if guarded := ruleset.guard_tables(spec):
            self._places.append(_Place(namespace=Namespace(), tables=guarded))

    def __enter__(self) -> Self:
        """Open; raises what :meth:`open` does."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def open(self) -> None:
        """Open a socket in each namespace.

        Raises AbsentError when the sandbox's is not there or not the one that was fenced,
        UnsupportedError when the kernel or a missing privilege doesn't let us or its boot id can't
        be read, FenceError when there are no sockets or no memory for it.
        """
        try:
            self._boot = _BOOT_ID.read_text("ascii").strip()
            for place in self._places:
                self._open(place)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UnsupportedError(f"{_BOOT_ID} can't be read: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Close the sockets."""
        for place in self._places:
            _close(place)

    @property
    def rules(self) -> tuple[str, ...]:
        """What the fence has counters of while it stands: its rules, by the names of accounts."""
        return tuple(
            account_name(rule, is_permissive=self._is_permissive)
            for place in self._places
            for _, _, names in place.tables
            for rule in names
        )

    def read(self) -> Reading:
        """Read all counters; takes some 10 s at most, whatever is in the place of the fence.

        Of each rule those of both modes: somebody may change it any time. A rule without its table,
        or without a counter or a set of its own, is not in it. Raises
        FenceError when the counters can't be read or are too many to be ours; after that the
        namespaces are entered anew by the next reading, which can raise what :meth:`open` does.
        """
        began_ns = time.time_ns()
        deadline = time.monotonic() + _READ_SECONDS
        rules: dict[str, RuleReading] = {}
        epochs: dict[str, str] = {}
        for place in self._places:
            for family, table, names in place.tables:
                for rule, is_permissive in itertools.product(names, (False, True)):
                    counting = counting_name(rule, is_permissive=is_permissive)
                    found = self._read(place, family, table, counting, deadline)
                    if found is not None:
                        name = account_name(rule, is_permissive=is_permissive)
                        epochs[name], rules[name] = found
        return Reading(epochs=epochs, began_ns=began_ns, ended_ns=time.time_ns(), rules=rules)

    def _read(
        self, place: _Place, family: str, table: str, rule: str, deadline: float
    ) -> tuple[str, RuleReading] | None:
        """The epoch of a rule, and its counters."""
        for _ in range(_TRIES):
            try:
                nftables = self._open(place)
                nftables.deadline = deadline
                found = _Rule(nftables, family, table, rule).read()
                return None if found is None else self._of_here(place, *found)
            except _ReplacedError:
                continue
            except OSError as error:
                _close(place)
                if error.errno not in _PASSING:
                    raise _unreadable(place.namespace, error) from error
            except BaseException:
                _close(place)  # a list may not have come to its end
                raise
        raise FenceError(
            f"the counters of rule {rule} in {place.namespace} are replaced again and again"
        )

    def _of_here(self, place: _Place, epoch: str, reading: RuleReading) -> tuple[str, RuleReading]:
        """The epoch of whatever boot, and a reading with users as they are numbered here."""
        if place.users is not None:
            reading = renumbered(reading, place.users.here)
        return f"{self._boot}:{epoch}", reading

    def _open(self, place: _Place) -> Nftables:
        """The socket in a place, a new one where there is none."""
        if place.nftables is None:
            try:
                place.nftables = place.namespace.call(lambda: self._opened(place))
            except OSError as error:
                raise _unreadable(place.namespace, error) from error
        return place.nftables

    def _opened(self, place: _Place) -> Nftables:
        """A socket in the calling thread's namespace, if that is the one that was fenced."""
        if place.identity not in {None, Namespace().identity()}:
            raise AbsentError(
                f"{place.namespace} is not the namespace any more in which the fence of sandbox "
                f"{self._sandbox} was installed"
            )
        place.users = userns.users()
        return Nftables()


class _Rule:
    """One rule's counters in a table, asked for over an open socket."""

    def __init__(self, nftables: Nftables, family: str, table: str, rule: str) -> None:
        self._nftables = nftables
        self._family = nfnetlink.FAMILIES[family]
        self._table = table
        self._rule = rule

    def read(self) -> tuple[str, RuleReading] | None:
        """What tells these counters from others until the next boot, and what they say.

        None when they are not there. Raises OSError, _ReplacedError, and FenceError when there
        are more than ours can be.
        """
        before = self._marks()
        if before is None:
            return None
        elements = {kind: self._elements(kind, before.timeouts_ms[kind]) for kind in KINDS}
        after = self._marks()
        if after is None or after.handles != before.handles:
            raise _ReplacedError
        reading = RuleReading(
            refused_before=before.refused,
            refused=after.refused,
            overflow=after.overflow,
            logged=before.logged.packets,
            elements=elements,
        )
        numbers = (self._nftables.cookie, *before.handles)
        return ":".join(map(str, numbers)), reading

    def _marks(self) -> _Marks | None:
        try:
            table = self._ask(_NFT_MSG_GETTABLE, _name(_NFTA_TABLE_NAME, self._table))
            sets = {kind: self._ask(_NFT_MSG_GETSET, self._named(kind)) for kind in KINDS}
            # The overflow first: what it holds is in `refused` by then.
            logged, overflow, refused = (
                self._ask(
                    _NFT_MSG_GETOBJ,
                    self._named(counter)
                    + netlink.attribute(_NFTA_OBJ_TYPE, _NUMBER32.pack(_NFT_OBJECT_COUNTER)),
                )
                for counter in ("logged", "overflow", "refused")
            )
        except FileNotFoundError:
            return None
        return _Marks(
            handles=(
                _number(table, _NFTA_TABLE_HANDLE),
                *(_number(found, _NFTA_SET_HANDLE) for found in sets.values()),
                _number(overflow, _NFTA_OBJ_HANDLE),
                _number(refused, _NFTA_OBJ_HANDLE),
            ),
            timeouts_ms={kind: _number(found, _NFTA_SET_TIMEOUT) for kind, found in sets.items()},
            logged=_count(logged),
            overflow=_count(overflow),
            refused=_count(refused),
        )

    def _elements(self, kind: Kind, timeout_ms: int) -> tuple[Element, ...]:
        """The elements of a set, each once.

        Where the kernel says that they changed meanwhile it is asked again, and what it told of
        still counts: somebody may change them all the time.
        """
        elements = Elements(_KEY_BYTES[kind], timeout_ms)
        found: dict[bytes, Element] = {}
        for _ in range(_TRIES):
            elements.seen = 0
            try:
                self._collect(kind, elements, found)
                break
            except InterruptedDumpError:
                continue
            except FileNotFoundError as error:
                raise _ReplacedError from error
        return tuple(found.values())

    def _collect(self, kind: Kind, elements: Elements, found: dict[bytes, Element]) -> None:
        most = _MOST_TIMES * _SIZES[kind]
        dump = self._nftables.dump(_NFT_MSG_GETSETELEM, self._family, self._named(kind))
        for message in dump:
            for attribute, payload in netlink.attributes(message):
                if attribute == _NFTA_SET_ELEM_LIST_ELEMENTS:
                    told = elements.parse(payload)
                    found.update(zip(map(_DATA, told), told, strict=True))
            if elements.seen > most:
                raise FenceError(
                    f"the set {kind}_{self._rule} has more than {most} elements, so it is not that "
                    "of a fence: install the fence again"
                )

    def _ask(self, kind: int, attributes: bytes) -> dict[int, bytes]:
        return self._nftables.ask(kind, self._family, attributes)

    def _named(self, what: str) -> bytes:
        return _name(_NFTA_TABLE, self._table) + _name(_NFTA_NAME, f"{what}_{self._rule}")


def _close(place: _Place) -> None:
    if place.nftables is not None:
        place.nftables.close()
        place.nftables = None


def _unreadable(namespace: Namespace, error: OSError) -> FenceError | UnsupportedError:
    if isinstance(error, PermissionError):
        return UnsupportedError(
            f"the kernel does not let us read counters in {namespace}: run as root, or with "
            "CAP_NET_ADMIN over it"
        )
    if error.errno in _UNKNOWN:
        return UnsupportedError(
            f"the kernel has no counters in {namespace} ({error.strerror}): it needs nf_tables "
            "and Linux 5.14"
        )
    return FenceError(
        f"the counters in {namespace} can't be read: {error.strerror or 'the kernel is too slow'}"
    )


def _name(kind: int, name: str) -> bytes:
    return netlink.attribute(kind, name.encode("ascii") + b"\0")


def _number(attributes: Mapping[int, bytes], kind: int) -> int:
    """A number of any width; 0 when it is missing."""
    return int.from_bytes(attributes.get(kind, b""), "big")


def _count(counter: Mapping[int, bytes]) -> Count:
    data = {
        kind: bytes(value)
        for kind, value in netlink.attributes(memoryview(counter.get(_NFTA_OBJ_DATA, b"")))
    }
    return Count(_number(data, _NFTA_COUNTER_PACKETS), _number(data, _NFTA_COUNTER_BYTES))
