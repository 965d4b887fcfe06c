"""Matching of a rule's statements with a sample packet.

An answer is YES or NO, or MAYBE if it depends on an unknown field of the packet.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.field_values import Absent, flags_of, is_number, operand, span, value
from ocsf_nft.check.packet import TCP, Bits, Span, Truth, any_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.check.packet import Packet
    from ocsf_nft.check.ruleset import Ruleset, TableKey

#: The largest number that a field of a packet holds: an IPv6 address.
_LARGEST: Final = (1 << 128) - 1
#: A set with at least so many elements is sorted before it is searched.
_MIN_SORTED: Final = 64
#: Cost of parsing an address, in units of checking a rule.
_COST_OF_PARSING: Final = 3
#: A set with less room than this may be full when the packet arrives: other packets fill it, too.
_MIN_ROOM: Final = 64
#: IP version that a statement requires: nft inserts a test for it before the statement.
_VERSIONS: Final = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}


class Matcher:
    """Evaluator of a firewall ruleset's statements for sample packets.

    The methods' argument ``table`` is the table of a rule and its sets. Before set elements are
    compared, ``spend`` is called with the cost: the number of elements to compare or to parse, or a
    multiple of it. It may raise an error to limit the work.
    """

    def __init__(self, ruleset: Ruleset, spend: Callable[[int], None]) -> None:
        self._ruleset = ruleset
        self._spend = spend
        self._sorted: dict[int, list[Span] | None] = {}
        self._keys: dict[int, list[Any]] = {}

    def match(self, table: TableKey, body: Any, packet: Packet) -> Truth:
        """Return YES if a match statement holds for a packet, NO if not, MAYBE if unknown.

        ``body`` is the statement in nft's JSON.
        """
        if not isinstance(body, dict):
            return Truth.MAYBE
        left, operator, right = body.get("left"), str(body.get("op")), body.get("right")
        found = value(left, packet)
        # Even with !=: nft adds a test that the packet has the field.
        if isinstance(found, Absent):
            return Truth.NO
        if operator in {"<", ">", "<=", ">="}:
            return _compare(found, operator, right)
        if operator in {"in", "!"}:
            answer = _intersects(found, right)
        elif operator in {"==", "!="}:
            result = self.holds(table, left, right, packet)
            if result is None:
                return Truth.NO
            answer = result
        else:
            return Truth.MAYBE
        return answer.inverted() if operator in {"!=", "!"} else answer

    def can_run(self, table: TableKey, kind: str, body: Any, packet: Packet) -> Truth:
        """Return YES if the kernel can execute a statement for a packet, NO if not, else MAYBE.

        For example, the kernel can't add an element to a full set. ``kind`` is the statement's
        name, such as ``mangle``, and ``body`` is its JSON.
        """
        if not isinstance(body, dict):
            return Truth.YES
        # The kernel ends a rule at a statement that it can't execute: nft_lookup.c, nft_objref.c,
        # nft_payload.c, nft_ct.c and nft_dynset.c.
        version = _VERSIONS.get(str(body.get("type" if kind == "reject" else "family")))
        if version not in {None, packet.version} or (kind == "synproxy" and packet.protocol != TCP):
            return Truth.NO
        if kind in {"set", "map"}:
            return min(self._has_values(table, body.get("elem"), packet),
                       self._has_values(table, body.get("data"), packet),
                       self._has_room(table, body, kind))  # fmt: skip
        if kind != "mangle":
            return self._has_values(table, body, packet)
        answer = self._has_values(table, body.get("value"), packet)
        key = body.get("key")
        if isinstance(key, dict) and "tcp option" in key:
            return min(answer, Truth.MAYBE if packet.protocol == TCP else Truth.NO)
        is_of_header = isinstance(key, dict) and "payload" in key
        return Truth.NO if is_of_header and isinstance(value(key, packet), Absent) else answer

    def _has_values(self, table: TableKey, read: Any, packet: Packet) -> Truth:
        """Return YES if the fields and map elements that an expression reads exist."""
        if isinstance(read, list):
            return min((self._has_values(table, part, packet) for part in read),
                       default=Truth.YES)  # fmt: skip
        if not isinstance(read, dict):
            return Truth.YES
        lookup = read.get("map")
        if isinstance(lookup, dict):
            return self._map_has_value(table, lookup, packet)
        if isinstance(value(read, packet), Absent):
            return Truth.NO
        return self._has_values(table, list(read.values()), packet)

    def _map_has_value(self, table: TableKey, body: dict[str, Any], packet: Packet) -> Truth:
        pairs = self.elements(table, body.get("data"))
        if pairs is None:
            return Truth.MAYBE
        keys = self._keys_of(pairs)
        result = self.holds(table, body.get("key"), {"set": keys}, packet)
        if result is None:  # the packet has no such field, and no default either
            return Truth.NO
        return Truth.YES if "*" in keys else result

    def _keys_of(self, pairs: Sequence[Any]) -> list[Any]:
        keys = self._keys.get(id(pairs))
        if keys is None:
            keys = [
                plain_value(pair[0] if isinstance(pair, list) and pair else pair) for pair in pairs
            ]
            if len(pairs) >= _MIN_SORTED:  # a list of the ruleset, which lives as long as this
                self._keys[id(pairs)] = keys
        return keys

    def _has_room(self, table: TableKey, body: dict[str, Any], kind: str) -> Truth:
        found = self._ruleset.sets.get((*table, str(body.get(kind)).removeprefix("@")))
        if body.get("op") == "delete":
            return Truth.YES
        if found is None or found.elements is None:
            return Truth.MAYBE
        is_short = found.size is not None and found.size - len(found.elements) < _MIN_ROOM
        return Truth.MAYBE if is_short else Truth.YES

    def holds(self, table: TableKey, left: Any, right: Any, packet: Packet) -> Truth | None:
        """Return YES if a packet's field has an expected value, NO if not, MAYBE if unknown.

        ``left`` (the field) and ``right`` (a value, a list, or a set's name) are in nft's JSON.
        Returns None if the packet doesn't have the field.
        """
        test = operand(left, packet)
        if test is None:
            return None
        items = self.elements(table, right)
        if items is None:
            return Truth.MAYBE
        number = value(left, packet)
        if len(items) >= _MIN_SORTED and isinstance(number, Span):
            spans = self._spans(items)
            if spans is not None:
                return _in_spans(number, spans)
        self._spend(len(items))
        return any_of(test(plain_value(item)) for item in items)

    def _spans(self, items: Sequence[Any]) -> list[Span] | None:
        """Return the elements of a set as sorted ranges of numbers; None if one can't be parsed."""
        # Ids stay valid: large lists are of the ruleset, or are stored in self._keys.
        if id(items) not in self._sorted:
            self._spend(_COST_OF_PARSING * len(items))
            spans = [span(plain_value(item)) for item in items]
            known = sorted(found for found in spans if found is not None)
            self._sorted[id(items)] = known if len(known) == len(items) else None
        return self._sorted[id(items)]

    def elements(self, table: TableKey, right: Any) -> Sequence[Any] | None:
        """Return the values with which a rule compares a packet's field.

        ``right`` contains the values in nft's JSON, or is the name of a set, such as ``@allowed4``.
        Returns None if the elements of the set were not read.
        """
        if isinstance(right, str) and right.startswith("@"):
            found = self._ruleset.sets.get((*table, right[1:]))
            return [right] if found is None else found.elements
        if isinstance(right, dict) and len(right) == 1 and "set" in right:
            inner = right["set"]
            return inner if isinstance(inner, list) else [inner]
        return [right]


def _in_spans(number: Span, spans: list[Span]) -> Truth:
    found, end = Truth.NO, bisect.bisect_right(spans, number.high, key=lambda each: each.low)
    for each in reversed(spans[max(0, end - 2) : end]):
        found = max(found, number.within(each))
    return found


def plain_value(item: Any) -> Any:
    """Return the value of a set element in nft's JSON, without its timeout, comment and counter."""
    if isinstance(item, dict) and isinstance(item.get("elem"), dict):
        return item["elem"].get("val")
    return item


def _intersects(found: Any, mask: Any) -> Truth:
    if isinstance(found, Bits):
        return found.intersects(flags_of(mask))
    if isinstance(found, Span) and found.single is not None and is_number(mask):
        return Truth.YES if found.single & mask else Truth.NO
    return Truth.MAYBE


def _compare(found: Any, operator: str, right: Any) -> Truth:
    limit = span(right)
    if not isinstance(found, Span) or limit is None or limit.single is None:
        return Truth.MAYBE
    number = limit.single
    accepted = {
        "<": Span(0, number - 1),
        "<=": Span(0, number),
        ">": Span(number + 1, _LARGEST),
        ">=": Span(number, _LARGEST),
    }[operator]
    return found.within(accepted)
