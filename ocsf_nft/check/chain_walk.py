"""Walk of a modelled packet through the rules of a chain, to find the rules that stop it.

If it is unknown whether a rule matches the packet, the walk follows both outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.field_values import is_number, value
from ocsf_nft.check.packet import MARKS, Packet, Span, Truth, exactly
from ocsf_nft.check.rule_match import Matcher, plain_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocsf_nft.check.ruleset import Chain, ChainKey, Rule, Ruleset

#: The kernel follows 16 jumps (NFT_JUMP_STACK_SIZE); legacy iptables follows more.
_DEPTH: Final = 64
#: Limit of the rules and set elements that are checked; it takes some seconds.
_BUDGET: Final = 2_000_000
#: Limit of the undecided rules in a result.
_MAX_UNDECIDED: Final = 3
_UNKNOWN: Final = "may drop"
#: Statements that neither stop a packet nor alter what a later rule sees of it.
_HARMLESS: Final = frozenset(
    {"counter", "log", "continue", "ct helper", "ct timeout", "ct expectation", "flow", "dup"}
    | {"secmark", "last", "tunnel", "set", "map"}
)
#: Statements that match some packets and not others: the number of earlier packets decides.
_CONDITIONAL: Final = frozenset({"limit", "quota", "ct count"})
#: Statements that stop a packet, and the verb for messages.
_STOPS: Final[Mapping[str, str]] = {
    "drop": "drops",
    "reject": "refuses",
    "dnat": "redirects",
    "redirect": "redirects",
    "fwd": "sends elsewhere",
    "synproxy": "answers itself",
}
#: Statements that change the packet. The effect of iptables' targets ``MARK`` and ``CT`` depends on
#: their arguments, which nft doesn't list.
_CHANGES: Final[Mapping[str, Callable[[Packet], Packet]]] = {
    "masquerade": Packet.with_any_source,
    "snat": Packet.with_any_source,
    "notrack": Packet.untracked,
    "xt CT": lambda packet: packet.joined(packet.untracked()),
    "xt MARK": lambda packet: replace(packet, mark=MARKS),
}
_HARMLESS_TARGETS: Final = (
    *("LOG", "NFLOG", "TCPMSS", "CHECKSUM", "TEE", "AUDIT", "CLASSIFY", "DSCP", "TOS", "TTL"),
    *("HL", "SECMARK", "CONNSECMARK", "TRACE", "SET", "RATEEST", "IDLETIMER", "LED"),
    "TCPOPTSTRIP",
)
#: Targets of iptables of which nft lists only the name, and statements with the same effect.
_TARGETS: Final[Mapping[str, str]] = {
    "REJECT": "reject",
    "DNAT": "dnat",
    "REDIRECT": "redirect",
    "SYNPROXY": "synproxy",
    "MASQUERADE": "masquerade",
    "SNAT": "snat",
    **dict.fromkeys(("MARK", "CONNMARK", "HMARK"), "xt MARK"),
    **dict.fromkeys(("CT", "NOTRACK"), "xt CT"),
    **dict.fromkeys(_HARMLESS_TARGETS, "log"),
}
#: Fields of headers that are neither an address nor a port.
_OTHER_FIELDS: Final = frozenset({"dscp", "ecn", "ttl", "hoplimit", "flowlabel", "id", "checksum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Rule or chain policy that stops, or may stop, a modelled packet.

    ``rule`` is None for a chain policy. ``verb`` is a verb for messages, for example "drops".
    """

    chain: Chain
    rule: Rule | None
    verb: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """Result of the walk of a modelled packet through one chain."""

    reaches_end: Truth
    may_be_accepted: bool
    #: Rules and policies that stop, or may stop, the packet.
    stops: tuple[Stop, ...]
    #: At most three rules on which the result depends: it is unknown whether they match.
    undecided: tuple[Rule, ...]
    #: Packet as it leaves the chain: a rule may have changed its fields.
    packet: Packet


class TooLargeError(Exception):
    """Error: the ruleset is too large or too complex to be checked in bounded time."""


class Walker:
    """Simulator of packets in the chains of one ruleset; no real packet is sent.

    ``budget`` limits the rules, statements and set elements that all walks together evaluate.
    """

    def __init__(self, ruleset: Ruleset, budget: int = _BUDGET) -> None:
        self.ruleset = ruleset
        self._remaining = budget
        self._results: dict[tuple[ChainKey, Packet], WalkResult] = {}
        self.matcher = Matcher(ruleset, self.spend)

    def walk(self, chain: Chain, packet: Packet, depth: int = _DEPTH) -> WalkResult:
        """Simulate a packet in a chain's rules, including jumps to other chains; return the result.

        The chain's policy is not applied. If jumps nest deeper than ``depth``, the packet counts as
        possibly dropped. Raises TooLargeError if this walker has evaluated too many rules and set
        elements in total.
        """
        result = self._results.get((chain.key, packet))
        if result is None:
            result = _Walk(self, chain, packet, depth).run()
            self._results[chain.key, packet] = result
        return result

    def spend(self, cost: int) -> None:
        """Subtract ``cost`` from the budget; raise TooLargeError if the budget is exhausted."""
        self._remaining -= cost
        if self._remaining < 0:
            raise TooLargeError


class _Walk:
    """Simulation of one packet's way through the rules of one chain."""

    def __init__(self, walker: Walker, chain: Chain, packet: Packet, depth: int) -> None:
        self._walker = walker
        self._chain = chain
        self._table = chain.key.family, chain.key.table
        self._depth = depth
        #: What is known of the packet at the current rule.
        self._packet = packet
        #: Whether the packet reaches the current rule.
        self._reach = Truth.YES
        #: Whether a ``return`` may have led the packet to the chain's end.
        self._returned = False
        self._accepted = False
        self._stops: list[Stop] = []
        self._undecided: list[Rule] = []
        #: What is known of the packet at the rules where it may leave the chain.
        self._exit_packets: list[Packet] = []

    def run(self) -> WalkResult:
        for rule in self._chain.rules:
            self._walker.spend(1 + len(rule.statements))
            self._rule(rule)
            if self._reach is Truth.NO:
                break
        reaches_end = Truth.YES
        if self._reach is Truth.NO and not self._returned:
            reaches_end = Truth.NO
        elif self._accepted or self._stops:
            reaches_end = Truth.MAYBE
        if self._reach is not Truth.NO:
            self._exit_packets.append(self._packet)
        return WalkResult(
            reaches_end=reaches_end,
            may_be_accepted=self._accepted,
            stops=tuple(dict.fromkeys(self._stops)),
            undecided=tuple(dict.fromkeys(self._undecided))[:_MAX_UNDECIDED],
            packet=reduce(Packet.joined, self._exit_packets or [self._packet]),
        )

    def _rule(self, rule: Rule) -> None:
        matches = Truth.YES
        for kind, body in rule.statements:
            if kind == "match":
                answer = self._walker.matcher.match(self._table, body, self._packet)
                matches = min(matches, answer)
            elif _is_conditional(kind, body):
                matches = min(matches, Truth.MAYBE)
            elif kind == "vmap":
                if self._vmap(rule, body, matches):
                    return
            else:
                can_run = self._walker.matcher.can_run(self._table, kind, body, self._packet)
                matches = min(matches, can_run)
                if matches is not Truth.NO and self._apply(rule, kind, body, matches):
                    return
            if matches is Truth.NO:
                return

    def _apply(self, rule: Rule, kind: str, body: Any, matches: Truth) -> bool:
        """Simulate a statement of ``rule``, such as ``drop`` or ``jump``, for the walk's packet.

        ``body`` is the statement's JSON. ``matches`` is YES if the packet certainly reaches the
        statement, else MAYBE. Return true if the rule's later statements are skipped.
        """
        if kind == "xt":
            name = body.get("name") if isinstance(body, dict) else None
            kind = _TARGETS.get(str(name), kind)
        if kind in _CHANGES:
            self._alter(_CHANGES[kind], matches)
        if kind in _STOPS:
            self._stop(rule, _STOPS[kind], matches)
        elif kind in {"accept", "masquerade", "snat"}:
            self._accept(rule, matches)
        elif kind == "return":
            self._return(self._packet, matches)
        elif kind in {"jump", "goto"}:
            self._enter(rule, kind, body, matches)
        elif kind == "queue":
            self._stop(rule, "hands to a program", Truth.MAYBE)
            self._accept(rule, matches)
        else:
            self._affect(rule, kind, body, matches)
            return False
        return True

    def _affect(self, rule: Rule, kind: str, body: Any, matches: Truth) -> None:
        if kind == "mangle":
            key = body.get("key") if isinstance(body, dict) else None
            if key == {"meta": {"key": "mark"}}:
                mark = _mark(body.get("value"), self._packet)
                self._alter(lambda packet: replace(packet, mark=mark), matches)
            elif _may_be_address(key):
                self._stop(rule, _UNKNOWN, Truth.MAYBE)
                self._alter(Packet.with_any_addresses, matches)
        elif kind == "tproxy":
            self._stop(rule, "redirects", Truth.MAYBE)
        elif kind not in _HARMLESS and kind not in _CHANGES:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)

    def _alter(self, change: Callable[[Packet], Packet], matches: Truth) -> None:
        altered = change(self._packet)
        self._packet = altered if matches is Truth.YES else self._packet.joined(altered)

    def _leave(self, matches: Truth) -> None:
        self._reach = Truth.NO if matches is Truth.YES else Truth.MAYBE

    def _note_undecided(self, rule: Rule, matches: Truth) -> None:
        if matches is Truth.MAYBE:
            self._undecided.append(rule)

    def _stop(self, rule: Rule, verb: str, matches: Truth) -> None:
        self._stops.append(Stop(chain=self._chain, rule=rule, verb=verb))
        self._leave(matches)

    def _accept(self, rule: Rule, matches: Truth) -> None:
        self._accepted = True
        self._exit_packets.append(self._packet)
        self._note_undecided(rule, matches)
        self._leave(matches)

    def _return(self, packet: Packet, matches: Truth) -> None:
        self._returned = True
        self._exit_packets.append(packet)
        self._leave(matches)

    def _enter(self, rule: Rule, kind: str, body: Any, matches: Truth) -> None:
        target = body.get("target") if isinstance(body, dict) else None
        chain = self._walker.ruleset.chains.get(self._chain.key._replace(name=str(target)))
        if chain is None or self._depth <= 0:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)
            return
        result = self._walker.walk(chain, self._packet, self._depth - 1)
        self._stops.extend(result.stops)
        self._undecided.extend(result.undecided)
        if result.stops or result.may_be_accepted:
            self._note_undecided(rule, matches)
        if result.may_be_accepted:
            self._accepted = True
            self._exit_packets.append(result.packet)
        if kind == "goto":
            if result.reaches_end is not Truth.NO:
                self._return(result.packet, matches)
            else:
                self._leave(matches)
        elif result.reaches_end is Truth.NO:
            self._leave(matches)
        else:
            if result.reaches_end is Truth.MAYBE:
                self._reach = Truth.MAYBE
            self._alter(lambda _: result.packet, matches)

    def _vmap(self, rule: Rule, body: Any, matches: Truth) -> bool:
        """Simulate a verdict map, such as ``tcp dport vmap { 22 : drop }``, as :meth:`_apply`."""
        pairs, key = self._pairs(body), body.get("key") if isinstance(body, dict) else None
        if pairs is None:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)
            return False
        reach_before, any_before = self._reach, Truth.NO
        for item, verdicts in pairs:
            holds = self._walker.matcher.holds(self._table, key, {"set": [item]}, self._packet)
            if holds is None:  # the packet has no such field, and no default either
                return True
            answer = any_before.inverted() if item == "*" else holds
            any_before = max(any_before, answer)
            matched = min(answer, matches)
            if matched is Truth.NO or not isinstance(verdicts, dict):
                continue
            for kind, inner in verdicts.items():
                self._apply(rule, kind, inner, matched)
            if matched is Truth.YES:
                return True
        self._reach = min(self._reach, reach_before)
        return False

    def _pairs(self, body: Any) -> Sequence[Sequence[Any]] | None:
        data = body.get("data") if isinstance(body, dict) else None
        found = self._walker.matcher.elements(self._table, data)
        if found is None:
            return None
        self._walker.spend(len(found))
        pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) != len(found):
            return None
        return [(plain_value(item), verdicts) for item, verdicts in pairs]


def _may_be_address(key: Any) -> bool:
    # A field given by offset and length, not by name, may contain an address.
    payload = key.get("payload") if isinstance(key, dict) else None
    return isinstance(payload, dict) and payload.get("field") not in _OTHER_FIELDS


def _mark(assigned: Any, packet: Packet) -> Span:
    if is_number(assigned):
        return exactly(assigned)
    found = value(assigned, packet)
    return found if isinstance(found, Span) and found.high <= MARKS.high else MARKS


def _is_conditional(kind: str, body: Any) -> bool:
    if kind in _CONDITIONAL:
        return True
    # nft doesn't decode the match of an iptables extension. A packet that fails the match skips the
    # rest of the rule.
    if kind == "xt":
        return isinstance(body, dict) and body.get("type") == "match"
    # The effect of a limit in a set depends on the number of earlier packets.
    inner = body.get("stmt") if kind in {"set", "map"} and isinstance(body, dict) else None
    return isinstance(inner, list) and any(
        isinstance(entry, dict) and bool(_CONDITIONAL & entry.keys()) for entry in inner
    )
