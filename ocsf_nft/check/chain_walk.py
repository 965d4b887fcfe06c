"""Walk a packet through a chain, as the kernel would, and tell where it ends.

Every rule that can't be decided is taken both ways, so what is told is the truth, or "may be".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import statement_effects
from ocsf_nft.check.rule_match import Matcher, plain
from ocsf_nft.check.ternary import Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.check.packet import Packet
    from ocsf_nft.check.ruleset import Chain, Key, Rule, Ruleset

#: The kernel follows 16 jumps (NFT_JUMP_STACK_SIZE); iptables of the old kind more.
_DEPTH: Final = 64
#: What following packets may cost, in rules and elements looked at: some seconds.
_BUDGET: Final = 2_000_000
#: So many of the rules that can't be decided are worth naming.
_NAMED: Final = 3
_UNKNOWN: Final = "may drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where a packet may be stopped: by a rule, or by the policy of a chain (``rule`` is None).

    ``verb`` is what it does to the packet.
    """

    chain: Chain
    rule: Rule | None
    verb: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """What becomes of a packet in a chain.

    ``goes_on``: whether it comes out of the chain's end. ``may_be_accepted``: whether a rule may
    accept it. ``undecided`` are rules of which it can't be told whether they match, where that
    matters. ``packet`` is what is known of it then.
    """

    goes_on: Truth
    may_be_accepted: bool
    stops: tuple[Stop, ...]
    undecided: tuple[Rule, ...]
    packet: Packet


class TooLargeError(Exception):
    """The ruleset is too large, or too entangled, to be followed in bounded time."""


class Walker:
    """Walks packets through a ruleset, remembers what it found, and keeps to one budget."""

    def __init__(self, ruleset: Ruleset, budget: int = _BUDGET) -> None:
        self._ruleset = ruleset
        self._left = budget
        self._known: dict[tuple[Key, Packet], Walked] = {}
        self.matcher = Matcher(ruleset, self.spend)

    def walk(self, chain: Chain, packet: Packet, depth: int = _DEPTH) -> Walked:
        """One chain and what it jumps to, without a policy; raises TooLargeError."""
        known = self._known.get((chain.key, packet))
        if known is None:
            known = _Walk(self, chain, packet, depth).walked()
            self._known[chain.key, packet] = known
        return known

    def enter(self, key: Key, packet: Packet, depth: int) -> Walked | None:
        """A chain that is jumped to; None when it isn't there. Raises TooLargeError."""
        chain = self._ruleset.chains.get(key)
        if chain is None or depth <= 0:
            return None
        return self.walk(chain, packet, depth - 1)

    def spend(self, cost: int) -> None:
        """Count what is looked at; raises TooLargeError when it is too much."""
        self._left -= cost
        if self._left < 0:
            raise TooLargeError


class _Walk:
    """One packet in one chain, rule by rule."""

    def __init__(self, walker: Walker, chain: Chain, packet: Packet, depth: int) -> None:
        self._walker = walker
        self._chain = chain
        self._depth = depth
        #: What is known of it where it is.
        self._packet = packet
        #: Whether it gets there.
        self._reach = Truth.YES
        #: Whether a ``return`` may have led it to the chain's end.
        self._returned = False
        self._accepted = False
        self._stops: list[Stop] = []
        self._undecided: list[Rule] = []
        #: What was known of it where it may have left.
        self._left_as: list[Packet] = []

    def walked(self) -> Walked:
        for rule in self._chain.rules:
            self._walker.spend(1 + len(rule.statements))
            self._rule(rule)
            if self._reach is Truth.NO:
                break
        goes_on = Truth.YES
        if self._reach is Truth.NO and not self._returned:
            goes_on = Truth.NO
        elif self._accepted or self._stops:
            goes_on = Truth.MAYBE
        left_as = self._left_as if self._reach is Truth.NO else [*self._left_as, self._packet]
        packet = left_as[0] if left_as else self._packet
        for other in left_as[1:]:
            packet = packet.joined(other)
        return Walked(
            goes_on=goes_on,
            may_be_accepted=self._accepted,
            stops=tuple(dict.fromkeys(self._stops)),
            undecided=tuple(dict.fromkeys(self._undecided))[:_NAMED],
            packet=packet,
        )

    def _rule(self, rule: Rule) -> None:
        matches = Truth.YES
        family, table = self._chain.key.family, self._chain.key.table
        for kind, body in rule.statements:
            if kind == "match":
                answer = self._walker.matcher.match(family, table, body, self._packet)
                matches = min(matches, answer)
            elif kind in statement_effects.SOMETIMES or _is_conditional(kind, body):
                matches = min(matches, Truth.MAYBE)
            elif kind == "vmap":
                if self._vmap(rule, body, matches):
                    return
            else:
                runs = self._walker.matcher.runs(family, table, kind, body, self._packet)
                matches = min(matches, runs)
                if matches is not Truth.NO and self._is_last(rule, kind, body, matches):
                    return
            if matches is Truth.NO:
                return

    def _is_last(self, rule: Rule, kind: str, body: Any, matches: Truth) -> bool:
        """Do what a statement does; tell whether none after it in the rule is looked at."""
        if kind in statement_effects.STOPS:
            self._stop(rule, statement_effects.STOPS[kind], matches)
        elif kind in {"accept", "masquerade", "snat"}:
            if kind != "accept":
                self._alter(statement_effects.with_other_source, matches)
            self._accept(rule, matches)
        elif kind == "return":
            self._return(self._packet, matches)
        elif kind in {"jump", "goto"}:
            target = body.get("target") if isinstance(body, dict) else None
            self._enter(rule, kind, target, matches)
        elif kind == "queue":
            self._stop(rule, "hands to a program", Truth.MAYBE)
            self._accept(rule, matches)
        else:
            if kind == "xt":
                return self._xt(rule, body, matches)
            self._affect(rule, kind, body, matches)
            return False
        return True

    def _affect(self, rule: Rule, kind: str, body: Any, matches: Truth) -> None:
        if kind == "mangle":
            if isinstance(body, dict) and statement_effects.rewrites(body.get("key")):
                self._stop(rule, _UNKNOWN, Truth.MAYBE)
            self._alter(lambda packet: statement_effects.mangled(body, packet), matches)
        elif kind == "notrack":
            self._alter(statement_effects.untracked, matches)
        elif kind == "tproxy":
            self._stop(rule, "redirects", Truth.MAYBE)
        elif kind not in statement_effects.HARMLESS and kind not in {"set", "map"}:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)

    def _xt(self, rule: Rule, body: Any, matches: Truth) -> bool:
        """What iptables' own extensions do, of which nft tells no more than the name."""
        name = str(body.get("name")) if isinstance(body, dict) else ""
        if name in statement_effects.XT_STOPS:
            self._stop(rule, statement_effects.XT_STOPS[name], matches)
            return True
        if name in statement_effects.XT_ACCEPTS:
            self._alter(statement_effects.with_other_source, matches)
            self._accept(rule, matches)
            return True
        if name in statement_effects.XT_MARKS:
            self._alter(statement_effects.with_any_mark, matches)
        elif name in statement_effects.XT_TRACKING:
            self._alter(statement_effects.maybe_untracked, matches)
        elif name not in statement_effects.XT_HARMLESS:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)
        return False

    def _alter(self, change: Callable[[Packet], Packet], matches: Truth) -> None:
        altered = change(self._packet)
        self._packet = altered if matches is Truth.YES else self._packet.joined(altered)

    def _leave(self, matches: Truth) -> None:
        """Those that a rule matches go no further in this chain."""
        self._reach = Truth.NO if matches is Truth.YES else Truth.MAYBE

    def _doubt(self, rule: Rule, matches: Truth) -> None:
        if matches is Truth.MAYBE:
            self._undecided.append(rule)

    def _stop(self, rule: Rule, verb: str, matches: Truth) -> None:
        self._stops.append(Stop(chain=self._chain, rule=rule, verb=verb))
        self._leave(matches)

    def _accept(self, rule: Rule, matches: Truth) -> None:
        self._accepted = True
        self._left_as.append(self._packet)
        self._doubt(rule, matches)
        self._leave(matches)

    def _return(self, packet: Packet, matches: Truth) -> None:
        self._returned = True
        self._left_as.append(packet)
        self._leave(matches)

    def _enter(self, rule: Rule, kind: str, target: Any, matches: Truth) -> None:
        key = self._chain.key._replace(name=str(target))
        walked = self._walker.enter(key, self._packet, self._depth)
        if walked is None:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)
            return
        self._stops.extend(walked.stops)
        self._undecided.extend(walked.undecided)
        if walked.stops or walked.may_be_accepted:
            self._doubt(rule, matches)
        if walked.may_be_accepted:
            self._accepted = True
            self._left_as.append(walked.packet)
        if kind == "goto":
            if walked.goes_on is not Truth.NO:
                self._return(walked.packet, matches)
            else:
                self._leave(matches)
        elif walked.goes_on is Truth.NO:
            self._leave(matches)
        else:
            if walked.goes_on is Truth.MAYBE:
                self._reach = Truth.MAYBE
            self._alter(lambda _: walked.packet, matches)

    def _vmap(self, rule: Rule, body: Any, matches: Truth) -> bool:
        """Follow a verdict map; tell whether the rule ends there for sure."""
        pairs, key = self._pairs(body), body.get("key") if isinstance(body, dict) else None
        if pairs is None:
            self._stop(rule, _UNKNOWN, Truth.MAYBE)
            return False
        before, any_so_far = self._reach, Truth.NO
        family, table = self._chain.key.family, self._chain.key.table
        for item, verdicts in pairs:
            held = self._walker.matcher.holds(family, table, key, {"set": [item]}, self._packet)
            if held is None:  # the packet has no such field, and no default either
                return True
            answer = any_so_far.inverted() if item == "*" else held
            any_so_far = max(any_so_far, answer)
            matched = min(answer, matches)
            if matched is Truth.NO or not isinstance(verdicts, dict):
                continue
            for kind, inner in verdicts.items():
                self._is_last(rule, kind, inner, matched)
            if matched is Truth.YES:
                return True
        self._reach = min(self._reach, before)
        return False

    def _pairs(self, body: Any) -> Sequence[Sequence[Any]] | None:
        data = body.get("data") if isinstance(body, dict) else None
        family, table = self._chain.key.family, self._chain.key.table
        found = self._walker.matcher.elements(family, table, data)
        if found is None:
            return None
        self._walker.spend(len(found))
        pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) != len(found):
            return None
        return [(plain(item), verdicts) for item, verdicts in pairs]


def _is_conditional(kind: str, body: Any) -> bool:
    """Whether a statement may end its rule: an extension's match, a set's that has a limit."""
    if kind == "xt":
        return isinstance(body, dict) and body.get("type") == "match"
    inner = body.get("stmt") if kind in {"set", "map"} and isinstance(body, dict) else None
    return isinstance(inner, list) and any(
        isinstance(entry, dict) and bool(statement_effects.SOMETIMES & entry.keys())
        for entry in inner
    )
