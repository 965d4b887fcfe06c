"""What a host's rules do to what a fence accepts: which rule drops it, whose it is, what helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.check import accepted_flows, allow_commands, chain_owner, hook_path
from ocsf_nft.check.accepted_flows import Direction
from ocsf_nft.check.bounded_command import NoAnswerError, answer
from ocsf_nft.check.chain_walk import Stop, TooLargeError, Walker
from ocsf_nft.check.finding import Finding, Place
from ocsf_nft.fence import nft
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.accepted_flows import Flow
    from ocsf_nft.check.hook_path import Ending
    from ocsf_nft.check.ruleset import Rule, Ruleset
    from ocsf_nft.fence.values import Endpoint, Subnet
    from ocsf_nft.netns import Namespace

#: More places than these are counted and not told one by one.
_TOLD: Final = 32
_RULE_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be judged, and where.

    ``device`` is a VM's, or a pattern of such as ``vmtap-*``; None: no VM is meant. ``uplinks``
    are the interfaces that lead to the internet by version of IP, and for a proxy ``links`` the
    ones that lead there.
    """

    namespace: Namespace
    device: str | None = None
    subnets: tuple[Subnet, ...] = ()
    port: int
    proxies: tuple[Endpoint, ...] = ()
    uplinks: Mapping[int, str] = field(default_factory=dict)
    links: Mapping[Endpoint, str] = field(default_factory=dict)

    def flows(self) -> Iterator[Flow]:
        """What a fence accepts, in packets."""
        if self.device is not None:
            machine = accepted_flows.Machine(
                device=self.device, subnets=self.subnets, port=self.port, uplinks=self.uplinks
            )
            # Where nothing speaks of IPv6, a VM would have none.
            for flow in accepted_flows.of_machine(machine):
                if self.subnets or flow.packet.version == 4 or 6 in self.uplinks:
                    yield flow
        for proxy in self.proxies:
            yield from accepted_flows.of_proxy(proxy, self.links.get(proxy))


def judge(ruleset: Ruleset, question: Question) -> Iterator[Finding]:
    """A finding for every rule that drops what the fence accepts, or may."""
    for sentence in ruleset.unread:
        yield Finding(
            name="unread-rules",
            severity="blocked",
            meaning=visible(sentence),
            remedy="look at these rules yourself, or install what reads them",
        )
    places: dict[tuple[object, ...], list[Ending]] = {}
    is_judged = True
    try:
        for ending in _endings(ruleset, question):
            rule = ending.stop.rule
            at = (ending.base.key, ending.stop.chain.key, None if rule is None else id(rule))
            places.setdefault(at, []).append(ending)
    except (TooLargeError, RecursionError):  # nested deeper than nft nests is as good as too large
        is_judged = False
        yield Finding(
            name="ruleset",
            severity="blocked",
            meaning="the ruleset is too large, or too entangled, to be followed rule by rule",
            remedy="try what the fence accepts, once it stands",
        )
    for endings in list(places.values())[:_TOLD]:
        yield _finding(endings, ruleset, question)
    if len(places) > _TOLD:
        yield Finding(
            name="may-drop",
            severity="blocked",
            meaning=f"{len(places) - _TOLD} more rules drop what the fence accepts, or may",
        )
    if is_judged and not places and not ruleset.unread:
        count = sum(len(chain.rules) for chain in ruleset.chains.values())
        yield Finding(
            name="accepted",
            severity="ok",
            meaning=f"none of {count} rules here drops what a fence accepts",
        )


def _endings(ruleset: Ruleset, question: Question) -> Iterator[Ending]:
    """Where the flows may be stopped; of our own rules, only what is certain is worth a word."""
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    opening: set[tuple[Stop, bool]] = set()
    for flow in question.flows():
        found = hook_path.endings(flow, hooks, walker)
        # What a flow doesn't get past when it begins, it needn't get past later.
        known = opening if flow.is_later else set()
        opening = {(ending.stop, ending.is_certain) for ending in found}
        for ending in found:
            is_news = not known & {(ending.stop, True), (ending.stop, ending.is_certain)}
            if is_news and (ending.is_certain or not chain_owner.is_ours(ending.stop.chain.key)):
                yield ending


def _finding(endings: list[Ending], ruleset: Ruleset, question: Question) -> Finding:
    first = endings[0]
    if all(_is_published(ending) for ending in endings):
        return _published(endings, ruleset, question.namespace)
    stop, base = first.stop, first.base
    owner = chain_owner.owner(stop.chain, ruleset)
    is_certain = any(ending.is_certain for ending in endings)
    text = None if stop.rule is None else _text(stop.rule, question.namespace)
    wish = allow_commands.Wish(
        namespace=question.namespace,
        directions={ending.flow.direction for ending in endings},
        versions={ending.flow.packet.version for ending in endings},
        device=question.device,
        subnets=question.subnets,
        port=question.port,
        proxies=tuple({ending.flow.endpoint: None for ending in endings
                       if ending.flow.endpoint is not None}),
    )  # fmt: skip
    commands = allow_commands.commands(owner, base, ruleset, wish)
    return Finding(
        name="drops" if is_certain else "may-drop",
        severity="blocked",
        meaning=_meaning(endings, owner, text, question.namespace),
        remedy=_remedy(owner, has_commands=bool(commands)),
        commands=commands,
        place=_place(stop, owner, text),
    )


def _place(stop: Stop, owner: str, text: str | None) -> Place:
    key = stop.chain.key
    return Place(
        backend=key.backend,
        family=visible(key.family),
        table=visible(key.table),
        chain=visible(key.name),
        handle=None if stop.rule is None else stop.rule.handle,
        rule=text,
        owner=owner,
    )


def _is_published(ending: Ending) -> bool:
    """Whether the gateway's port is, or may be, a container's: a VM's fence accepts that."""
    return ending.stop.verb == "redirects" and ending.flow.direction is Direction.GATEWAY


def _published(endings: list[Ending], ruleset: Ruleset, namespace: Namespace) -> Finding:
    stop = endings[0].stop
    owner = chain_owner.owner(stop.chain, ruleset)
    text = None if stop.rule is None else _text(stop.rule, namespace)
    return Finding(
        name="redirects",
        severity="info",
        meaning=_meaning(endings, owner, text, namespace),
        remedy="nothing, where it is to be so (a container's published port): a fence accepts what "
        "becomes of the gateway's port, and rules on the way from there are not judged here",
        place=_place(stop, owner, text),
    )


def _meaning(endings: list[Ending], owner: str, text: str | None, namespace: Namespace) -> str:
    stop = endings[0].stop
    key = stop.chain.key
    legacy = "legacy " if key.backend == "legacy" else ""
    where = visible(f"{legacy}table {key.family} {key.table}, chain {key.name} ({owner})")
    if text is None:
        what = "its policy"
    else:
        number = "" if stop.rule is None or stop.rule.handle is None else f" {stop.rule.handle}"
        what = f"rule{number} `{text}`"
    surely = [ending for ending in endings if ending.is_certain]
    maybe = [ending for ending in endings if not ending.is_certain]
    parts = [f"{stop.verb} {_flows(surely)}"] if surely else []
    parts += [f"{_doubtful(stop.verb)} {_flows(maybe)}"] if maybe else []
    sentence = f"{where}: {what} {', and '.join(parts)}"
    undecided = next(
        (rule for ending in maybe for rule in ending.undecided if rule is not stop.rule), None
    )
    if undecided is not None:
        depends = _text(undecided, namespace)
        sentence += f"; it depends on `{depends}`, which can't be told beforehand"
    return sentence


def _doubtful(verb: str) -> str:
    return verb if verb.startswith("may ") else f"may stop ({verb})"


def _flows(endings: list[Ending]) -> str:
    found: dict[Direction, dict[str, set[int]]] = {}
    for ending in endings:
        labels = found.setdefault(ending.flow.direction, {})
        labels.setdefault(ending.flow.label, set()).add(ending.flow.packet.version)
    parts = []
    for direction, labels in found.items():
        versions = sorted({version for each in labels.values() for version in each})
        which = " and ".join(f"IPv{version}" for version in versions)
        parts.append(f"{direction.value} ({', '.join(labels)}; {which})")
    return ", ".join(parts)


def _remedy(owner: str, *, has_commands: bool) -> str:
    if owner == chain_owner.OURS:
        return "a fence stands that accepts something else: install it anew"
    if not has_commands:
        return (
            f"have {owner} accept this traffic, or change the rule: no command is shown, "
            "because its names can't be written safely or only its owner can change the table"
        )
    if owner == chain_owner.FIREWALLD:
        return "let firewalld pass it, by a zone and a policy of its own; they are kept"
    if owner == chain_owner.UFW:
        return "let ufw pass it; the rules are kept"
    remedy = "let it pass before that rule; such a rule is gone after a restart unless it is saved"
    if owner in chain_owner.RESTLESS:
        remedy += f", and {owner} may put its own before it again"
    return remedy


def _text(rule: Rule, namespace: Namespace) -> str:
    """A rule as its own tool writes it; in nft's JSON where that can't be asked for."""
    text = rule.text or _listed(rule, namespace)
    if text is None:
        text = orjson.dumps([{kind: body} for kind, body in rule.statements]).decode()
    shown = visible(text)
    return shown if len(shown) <= _RULE_CHARACTERS else f"{shown[:_RULE_CHARACTERS]}…"


def _listed(rule: Rule, namespace: Namespace) -> str | None:
    key = rule.chain
    if not (allow_commands.is_plain(key.table) and allow_commands.is_plain(key.name)):
        return None
    command = [str(nft.find()), "-a", "-s", "-t", "list", "chain", key.family, key.table, key.name]
    try:
        listed = answer(namespace, command).decode("utf-8", "surrogateescape")
    except NoAnswerError:  # it is gone by now
        return None
    for line in listed.splitlines():
        text, mark, handle = line.rpartition(" # handle ")
        if mark and handle == str(rule.handle):
            return text.strip()
    return None
