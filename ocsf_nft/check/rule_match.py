"""Whether a rule's match holds for a packet: yes, no, or that can't be told."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.operand import Absent, Operand, flags_of, is_number, operand, span, value
from ocsf_nft.check.packet import TCP
from ocsf_nft.check.ternary import Bits, Span, Truth, any_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocsf_nft.check.packet import Packet
    from ocsf_nft.check.ruleset import Ruleset

#: The largest number that a field of a packet holds: an IPv6 address.
_LARGEST: Final = (1 << 128) - 1
#: From so many elements on a set is put in order before it is looked into.
_MANY: Final = 64
#: Reading an address takes as long as looking at so many rules.
_COST_OF_PARSING: Final = 3
#: With less room than this a set may be full by the time that a packet comes: others come too.
_ROOM: Final = 64
#: What a statement is for, where nft has put the test for it before the statement.
_VERSIONS: Final = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}


class Matcher:
    """Holds matches against packets; ``family`` and ``table`` are where a set is looked for.

    ``spend`` is told of every element that is looked at.
    """

    def __init__(self, ruleset: Ruleset, spend: Callable[[int], None]) -> None:
        self._ruleset = ruleset
        self._spend = spend
        self._sorted: dict[int, list[Span] | None] = {}

    def match(self, family: str, table: str, body: Any, packet: Packet) -> Truth:
        """A ``match`` statement's answer."""
        if not isinstance(body, dict):
            return Truth.MAYBE
        left, operator, right = body.get("left"), str(body.get("op")), body.get("right")
        found = value(left, packet)
        if isinstance(found, Absent):
            return Truth.NO
        if operator in {"<", ">", "<=", ">="}:
            return _compared(found, operator, right)
        if operator in {"in", "!"}:
            answer = _meets(found, right)
        elif operator in {"==", "!="}:
            held = self.holds(family, table, left, right, packet)
            if held is None:
                return Truth.NO
            answer = held
        else:
            return Truth.MAYBE
        return answer.inverted() if operator in {"!=", "!"} else answer

    def runs(self, family: str, table: str, kind: str, body: Any, packet: Packet) -> Truth:
        """Whether a statement finds what it reads; where it doesn't, its rule ends there.

        A map that holds nothing for the packet, a field that the packet doesn't have, a set that is
        full (nft_lookup.c, nft_objref.c, nft_payload.c, nft_ct.c, nft_dynset.c).
        """
        if not isinstance(body, dict):
            return Truth.YES
        version = _VERSIONS.get(str(body.get("type" if kind == "reject" else "family")))
        if version not in {None, packet.version} or (kind == "synproxy" and packet.protocol != TCP):
            return Truth.NO
        if kind in {"set", "map"}:
            return min(self._finds(family, table, body.get("elem"), packet),
                       self._finds(family, table, body.get("data"), packet),
                       self._has_room(family, table, body, kind))  # fmt: skip
        if kind != "mangle":
            return self._finds(family, table, body, packet)
        answer = self._finds(family, table, body.get("value"), packet)
        key = body.get("key")
        if isinstance(key, dict) and "tcp option" in key:
            return min(answer, Truth.MAYBE if packet.protocol == TCP else Truth.NO)
        is_of_header = isinstance(key, dict) and "payload" in key
        return Truth.NO if is_of_header and isinstance(value(key, packet), Absent) else answer

    def _finds(self, family: str, table: str, read: Any, packet: Packet) -> Truth:
        """Whether all fields and maps in an expression have something for the packet."""
        if isinstance(read, list):
            return min((self._finds(family, table, part, packet) for part in read),
                       default=Truth.YES)  # fmt: skip
        if not isinstance(read, dict):
            return Truth.YES
        looked_up = read.get("map")
        if isinstance(looked_up, dict):
            return self._maps(family, table, looked_up, packet)
        if isinstance(value(read, packet), Absent):
            return Truth.NO
        return self._finds(family, table, list(read.values()), packet)

    def _maps(self, family: str, table: str, body: dict[str, Any], packet: Packet) -> Truth:
        pairs = self.elements(family, table, body.get("data"))
        if pairs is None:
            return Truth.MAYBE
        keys = [plain(pair[0] if isinstance(pair, list) and pair else pair) for pair in pairs]
        held = self.holds(family, table, body.get("key"), {"set": keys}, packet)
        if held is None:  # the packet has no such field, and no default either
            return Truth.NO
        return Truth.YES if "*" in keys else held

    def _has_room(self, family: str, table: str, body: dict[str, Any], kind: str) -> Truth:
        found = self._ruleset.sets.get((family, table, str(body.get(kind)).removeprefix("@")))
        if body.get("op") == "delete":
            return Truth.YES
        if found is None or found.elements is None:
            return Truth.MAYBE
        is_short = found.size is not None and found.size - len(found.elements) < _ROOM
        return Truth.MAYBE if is_short else Truth.YES

    def holds(self, family: str, table: str, left: Any, right: Any, packet: Packet) -> Truth | None:
        """Whether an expression has one of these values; None when the packet has no such field."""
        test = _test(left, packet)
        if test is None:
            return None
        items = self.elements(family, table, right)
        if items is None:
            return Truth.MAYBE
        number = value(left, packet)
        if len(items) >= _MANY and isinstance(number, Span):
            spans = self._spans(items)
            if spans is not None:
                return _among(number, spans)
        self._spend(len(items))
        return any_of(test(plain(item)) for item in items)

    def _spans(self, items: Sequence[Any]) -> list[Span] | None:
        """The numbers of a large set in order; None when not all of them are understood."""
        if id(items) not in self._sorted:  # they live as long as the ruleset does
            self._spend(_COST_OF_PARSING * len(items))
            spans = [span(plain(item)) for item in items]
            known = sorted(found for found in spans if found is not None)
            self._sorted[id(items)] = known if len(known) == len(items) else None
        return self._sorted[id(items)]

    def elements(self, family: str, table: str, right: Any) -> Sequence[Any] | None:
        """The values of a right side, those of a set one by one; None when they weren't read."""
        if isinstance(right, str) and right.startswith("@"):
            found = self._ruleset.sets.get((family, table, right[1:]))
            return [right] if found is None else found.elements
        if isinstance(right, dict) and len(right) == 1 and "set" in right:
            inner = right["set"]
            return inner if isinstance(inner, list) else [inner]
        return [right]


def _among(number: Span, spans: list[Span]) -> Truth:
    """Whether a number is in one of these; of a set they don't overlap."""
    found, end = Truth.NO, bisect.bisect_right(spans, number.high, key=lambda each: each.low)
    for each in reversed(spans[max(0, end - 2) : end]):
        found = max(found, number.within(each))
    return found


def plain(item: Any) -> Any:
    """An element without its timeout, comment and counter."""
    if isinstance(item, dict) and isinstance(item.get("elem"), dict):
        return item["elem"].get("val")
    return item


def _test(left: Any, packet: Packet) -> Operand | None:
    if not (isinstance(left, dict) and isinstance(left.get("concat"), list)):
        found = operand(left, packet)
        return None if isinstance(found, Absent) else found
    parts: list[Operand] = []
    for part in left["concat"]:
        found = operand(part, packet)
        if isinstance(found, Absent):
            return None
        parts.append(found)

    def test(item: Any) -> Truth:
        values = item.get("concat") if isinstance(item, dict) else None
        if not isinstance(values, list) or len(values) != len(parts):
            return Truth.MAYBE
        return min(_answers(parts, values), default=Truth.MAYBE)

    return test


def _answers(parts: list[Operand], values: list[Any]) -> Iterator[Truth]:
    for part, item in zip(parts, values, strict=True):
        yield Truth.YES if item == "*" else part(item)


def _meets(found: Any, right: Any) -> Truth:
    """Whether one of the bits of the right side is set."""
    if isinstance(found, Bits):
        return found.meet(flags_of(right))
    if isinstance(found, Span) and found.single is not None and is_number(right):
        return Truth.YES if found.single & right else Truth.NO
    return Truth.MAYBE


def _compared(found: Any, operator: str, right: Any) -> Truth:
    limit = span(right)
    if not isinstance(found, Span) or limit is None or limit.single is None:
        return Truth.MAYBE
    number = limit.single
    match operator:
        case "<":
            wanted = Span(0, number - 1)
        case "<=":
            wanted = Span(0, number)
        case ">":
            wanted = Span(number + 1, _LARGEST)
        case _:
            wanted = Span(number, _LARGEST)
    return found.within(wanted)
