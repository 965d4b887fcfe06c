"""Reader of the packet counters of one firewall rule, and of its sets with a counter for each flow.

A process with CAP_NET_ADMIN in the sandbox can replace the fence's tables. So the reader ignores
unexpected elements, and limits the memory of a reading.
"""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence.counter_elements import ElementParser
from ocsf_nft.flow import KINDS, Count, Element, Kind, RuleReading
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables, Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

#: Counters of each rule: the last one includes the one before, so it is read later.
_COUNTERS: Final = ("logged", "overflow", "refused")
#: Far more counters than a table of a fence has.
_MAX_COUNTERS: Final = 1000
#: Length of the keys (ocsf_nft.flow) and maximum size of the sets (accounting.nft).
_KEY_BYTES: Final[Mapping[Kind, int]] = {"flows4": 16, "flows6": 28, "others": 12}
SIZES: Final[Mapping[Kind, int]] = {"flows4": 32_768, "flows6": 32_768, "others": 1_024}
#: The kernel continues a list by position, so it sends at most as many elements as the set can
#: have, with repetitions. A list of more than twice that size is not from a set of ours.
_MAX_FACTOR: Final = 2
#: Tries to read a set that changes meanwhile.
_TRIES: Final = 3
_NUMBER32: Final = struct.Struct("!I")
_DATA: Final = operator.attrgetter("data")


class _Snapshot(NamedTuple):
    """Totals of one rule's counters at one time, without the counters of single flows."""

    #: The kernel's numbers of the table, its sets and its counters. The kernel never reuses the
    #: number of a table, and no other number in the same table. If two snapshots have equal
    #: numbers, nothing was deleted between them.
    handles: tuple[int, ...]
    timeouts_ms: Mapping[Kind, int]
    logged: Count
    overflow: Count
    refused: Count


class RuleCounters(NamedTuple):
    """Reading of one rule's counters, with a text that changes if they are created again."""

    epoch: str
    reading: RuleReading


class ReplacedError(Exception):
    """Error: another process deleted or replaced the counters while they were read."""


class CrowdedError(Exception):
    """Error: a table has far more counters than a fence's table."""


class NamedCounter(NamedTuple):
    """Counter of a table."""

    #: The kernel's numbers of the table and of the counter: see ``_Snapshot.handles``.
    handles: tuple[int, int]
    total: Count


def read_counters(
    nftables: Nftables, family: str, table: str, names: Sequence[str]
) -> list[NamedCounter]:
    """Return counters of a table by their names, read one after another in this order.

    Raises FileNotFoundError if one is missing.
    """
    kind = netlink.attribute(_NFTA_OBJ_TYPE, _NUMBER32.pack(_NFT_OBJECT_COUNTER))
    requests = [
        (_NFT_MSG_GETTABLE, _name(_NFTA_TABLE_NAME, table)),
        *(
            (_NFT_MSG_GETOBJ, _name(_NFTA_TABLE, table) + _name(_NFTA_NAME, name) + kind)
            for name in names
        ),
    ]
    number = nfnetlink.FAMILIES[family]
    answers = nftables.queries([Query(each, number, attributes) for each, attributes in requests])
    handle = _number(answers[0], _NFTA_TABLE_HANDLE)
    return [
        NamedCounter((handle, _number(found, _NFTA_OBJ_HANDLE)), _count(found))
        for found in answers[1:]
    ]


def read_totals(
    nftables: Nftables, family: str, table: str, suffixes: Mapping[str, str]
) -> dict[str, RuleReading]:
    """Return the totals of a table's rules, without their flows."""
    counts = _table_counters(nftables, family, table)
    found = {}
    for rule, suffix in suffixes.items():
        logged, overflow, refused = (counts.get(f"{each}_{suffix}") for each in _COUNTERS)
        if logged is not None and overflow is not None and refused is not None:
            found[rule] = RuleReading(
                refused_before=refused,
                refused=refused,
                overflow=overflow,
                logged=logged.packets,
                elements=None,
            )
    return found


def _table_counters(nftables: Nftables, family: str, table: str) -> dict[str, Count]:
    counters = _name(_NFTA_TABLE, table) + netlink.attribute(
        _NFTA_OBJ_TYPE, _NUMBER32.pack(_NFT_OBJECT_COUNTER)
    )
    found = {}
    dump = nftables.dump(_NFT_MSG_GETOBJ, nfnetlink.FAMILIES[family], counters)
    for number, message in enumerate(dump):
        if number > _MAX_COUNTERS:  # another process has added them
            raise CrowdedError
        attributes = {kind: bytes(value) for kind, value in netlink.attributes(message)}
        name = attributes.get(_NFTA_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
        found[name] = _count(attributes)
    return found


class RuleReader:
    """Reader of the counters and sets of one rule, over an open netlink socket."""

    def __init__(self, nftables: Nftables, family: str, table: str, rule: str) -> None:
        self._nftables = nftables
        self._family = nfnetlink.FAMILIES[family]
        self._table = table
        self._rule = rule

    def read(self) -> RuleCounters | None:
        """Return the values of the rule's counters, and its flows; None if they don't exist.

        The epoch is unique until the next boot. Raises ReplacedError if the counters were deleted
        during the read.
        """
        before = self._snapshot()
        if before is None:
            return None
        elements = {kind: self._elements(kind, before.timeouts_ms[kind]) for kind in KINDS}
        after = self._snapshot()
        if after is None or after.handles != before.handles:
            raise ReplacedError
        reading = RuleReading(
            refused_before=before.refused,
            refused=after.refused,
            overflow=after.overflow,
            logged=before.logged.packets,
            elements=elements,
        )
        # Without the sets: if a set is created again, the total stays, and so does the account.
        numbers = self._nftables.cookie, before.handles[0], before.handles[-1]
        return RuleCounters(":".join(map(str, numbers)), reading)

    def _snapshot(self) -> _Snapshot | None:
        kind = netlink.attribute(_NFTA_OBJ_TYPE, _NUMBER32.pack(_NFT_OBJECT_COUNTER))
        requests = [
            (_NFT_MSG_GETTABLE, _name(_NFTA_TABLE_NAME, self._table)),
            *((_NFT_MSG_GETSET, self._object_name(each)) for each in KINDS),
            # The overflow first: ``refused``, which is read later, includes it.
            *((_NFT_MSG_GETOBJ, self._object_name(each) + kind) for each in _COUNTERS),
        ]
        try:
            table, *found, logged, overflow, refused = self._nftables.queries(
                [Query(each, self._family, attributes) for each, attributes in requests]
            )
        except FileNotFoundError:
            return None
        sets = dict(zip(KINDS, found, strict=True))
        return _Snapshot(
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
        """Return the elements of one of the rule's nftables sets: flows with their packet counts.

        ``kind`` selects the set, such as ``flows4``. The kernel deletes a flow after ``timeout_ms``
        without packets; each flow's idle time is computed from this timeout.
        """
        # The kernel sends a set in parts, and stores only its position (nf_tables_api.c). If
        # elements are added or expire between two parts, it may repeat or omit others without
        # notice. The last value of a repeated element counts. An omitted element's packets are in
        # the rule's total, and a later reading has the element again.
        elements = ElementParser(_KEY_BYTES[kind], timeout_ms)
        found: dict[bytes, Element] = {}
        # A change of the ruleset interrupts a dump. Another process can interrupt every dump: the
        # flows of all dumps are returned.
        for _ in range(_TRIES):
            elements.seen = 0
            try:
                self._collect(kind, elements, found)
                break
            except InterruptedDumpError:
                continue
            except FileNotFoundError as error:
                raise ReplacedError from error
        return tuple(found.values())

    def _collect(self, kind: Kind, elements: ElementParser, found: dict[bytes, Element]) -> None:
        limit = _MAX_FACTOR * SIZES[kind]
        dump = self._nftables.dump(_NFT_MSG_GETSETELEM, self._family, self._object_name(kind))
        for message in dump:
            for attribute, payload in netlink.attributes(message):
                if attribute == _NFTA_SET_ELEM_LIST_ELEMENTS:
                    parsed = elements.parse(payload)
                    found.update(zip(map(_DATA, parsed), parsed, strict=True))
            if elements.seen > limit:
                raise FenceError(
                    f"the set {kind}_{self._rule} has more than {limit} elements, so it is not "
                    "a set of a fence: install the fence again"
                )

    def _object_name(self, prefix: str) -> bytes:
        return _name(_NFTA_TABLE, self._table) + _name(_NFTA_NAME, f"{prefix}_{self._rule}")


def _name(kind: int, name: str) -> bytes:
    return netlink.attribute(kind, name.encode("ascii") + b"\0")


def _number(attributes: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b""), "big")


def _count(counter: Mapping[int, bytes]) -> Count:
    data = {
        kind: bytes(value)
        for kind, value in netlink.attributes(memoryview(counter.get(_NFTA_OBJ_DATA, b"")))
    }
    return Count(_number(data, _NFTA_COUNTER_PACKETS), _number(data, _NFTA_COUNTER_BYTES))
