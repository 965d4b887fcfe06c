"""Findings about rules of a host that drop, or may drop, the traffic that a fence accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.check import firewalls, hook_path
from ocsf_nft.check.accepted_flows import FlowDirection
from ocsf_nft.check.bounded_command import CommandError, command_output
from ocsf_nft.check.chain_walk import Stop, TooLargeError, Walker
from ocsf_nft.check.finding import Finding, RuleLocation
from ocsf_nft.fence import nft
from ocsf_nft.fence.spec import device_table
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.hook_path import FlowStop
    from ocsf_nft.check.ruleset import ChainKey, Rule, Ruleset
    from ocsf_nft.netns import Namespace

#: Rules beyond this number are counted, and not reported one by one.
_MAX_REPORTED: Final = 32
_RULE_CHARACTERS: Final = 300
_FENCE_REMEDY: Final = (
    "another fence blocks this traffic: install that fence again so that it allows the traffic, or "
    "remove it"
)
#: Name of the finding about a fence of ocsf-nft that refuses the traffic in question.
ACTIVE_FENCE: Final = "active-fence"


def judge(ruleset: Ruleset, scope: CheckScope) -> Iterator[Finding]:
    """Yield a finding for each rule that drops, or may drop, traffic that the fence accepts.

    An active fence of ocsf-nft gives one finding of severity ``info``. Rules that can't be checked
    give findings of severity ``blocked``. If there is no finding, except about an active fence,
    yield a finding of severity ``ok``.
    """
    for sentence in ruleset.unread:
        yield Finding(
            name="unread-rules",
            severity="blocked",
            meaning=visible(sentence),
            remedy="check these rules yourself, or install the program that reads them",
        )
    by_rule: dict[tuple[object, ...], list[FlowStop]] = {}
    is_judged = True
    try:
        for flow_stop in _flow_stops(ruleset, scope):
            key = flow_stop.base.key, flow_stop.stop.chain.key, flow_stop.stop.rule
            by_rule.setdefault(key, []).append(flow_stop)
    except (TooLargeError, RecursionError):  # deeper nesting than nft allows counts as too large
        is_judged = False
        yield Finding(
            name="ruleset",
            severity="blocked",
            meaning="the ruleset is too large or too complex to be checked rule by rule",
            remedy="install the fence, then test whether its accepted traffic gets through",
        )
    ours: list[FlowStop] = []
    others: list[list[FlowStop]] = []
    for flow_stops in by_rule.values():
        if _is_fence_in_question(flow_stops[0].stop.chain.key, scope):
            ours += flow_stops
        else:
            others.append(flow_stops)
    if ours:
        yield _active_fence(ours)
    for flow_stops in others[:_MAX_REPORTED]:
        yield _finding(flow_stops, ruleset, scope)
    if len(others) > _MAX_REPORTED:
        yield Finding(
            name="may-drop",
            severity="blocked",
            meaning=f"{len(others) - _MAX_REPORTED} more rules drop, or may drop, traffic that "
            "the fence accepts",
        )
    if is_judged and not others and not ruleset.unread:
        count = sum(len(chain.rules) for chain in ruleset.chains.values()
                    if not (ours and firewalls.is_ours(chain.key)))  # fmt: skip
        other = "other " if ours else ""
        yield Finding(
            name="accepted",
            severity="ok",
            meaning=f"none of {count} {other}rules here drops traffic that a fence accepts",
        )


def _is_fence_in_question(key: ChainKey, scope: CheckScope) -> bool:
    if scope.device is not None and not scope.device.endswith("*"):
        # Only the fence of this interface is meant to block the traffic of a single VM.
        return firewalls.is_ours(key) and key.table == device_table(scope.device)
    return firewalls.is_ours(key)


def _active_fence(flow_stops: list[FlowStop]) -> Finding:
    keys = {flow_stop.stop.chain.key[:3]: None for flow_stop in flow_stops}
    _, family, table = next(iter(keys))
    tables = ", ".join(f"{family} {table}" for _, family, table in keys)
    return Finding(
        name=ACTIVE_FENCE,
        severity="info",
        meaning=f"a fence of ocsf-nft is active here (table {visible(tables)}): it refuses "
        f"{_flows(flow_stops)}",
        # No command: it would allow traffic that the fence is meant to block.
        remedy="none, if it is the requested fence; to accept other traffic, install it again",
        location=RuleLocation(
            backend="nft", family=visible(family), table=visible(table), owner=firewalls.OURS
        ),
    )


def _flow_stops(ruleset: Ruleset, scope: CheckScope) -> Iterator[FlowStop]:
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    opening: set[tuple[Stop, bool]] = set()
    for flow in (*scope.resolution_flows(), *scope.flows()):
        found = hook_path.flow_stops(flow, hooks, walker)
        # A rule that stops a flow's first packet is not reported again for its later packets.
        known = opening if flow.is_continuation else set()
        opening = {(flow_stop.stop, flow_stop.is_certain) for flow_stop in found}
        for flow_stop in found:
            is_new = not known & {(flow_stop.stop, True), (flow_stop.stop, flow_stop.is_certain)}
            is_ours = firewalls.is_ours(flow_stop.stop.chain.key)
            # Rules often match details of address resolution that are not modelled.
            is_partial = is_ours or flow.direction is FlowDirection.NEIGHBOR
            if is_new and (flow_stop.is_certain or not is_partial):
                yield flow_stop


def _finding(flow_stops: list[FlowStop], ruleset: Ruleset, scope: CheckScope) -> Finding:
    stop, base = flow_stops[0].stop, flow_stops[0].base
    owner = firewalls.owner(stop.chain, ruleset)
    text = None if stop.rule is None else _rule_text(stop.rule, scope.namespace)
    handle = None if stop.rule is None else stop.rule.handle
    location = RuleLocation.of_chain(stop.chain.key, handle=handle, rule=text, owner=owner)
    meaning = _meaning(flow_stops, owner, text, scope.namespace)
    if all(_is_published_port(flow_stop) for flow_stop in flow_stops):
        return Finding(
            name="redirects",
            severity="info",
            meaning=meaning,
            remedy="none if this is intended (a container's published port): a fence accepts the "
            "redirected traffic; the rules that apply to it afterwards are not judged here",
            location=location,
        )
    # No command may open another fence.
    is_fence = owner == firewalls.OURS
    flows = [flow_stop.flow for flow_stop in flow_stops]
    commands = () if is_fence else firewalls.commands(owner, base, ruleset, scope, flows)
    is_certain = any(flow_stop.is_certain for flow_stop in flow_stops)
    return Finding(
        name="drops" if is_certain else "may-drop",
        severity="blocked",
        meaning=meaning,
        remedy=_FENCE_REMEDY if is_fence else _remedy(owner, has_commands=bool(commands)),
        commands=commands,
        location=location,
    )


def _is_published_port(flow_stop: FlowStop) -> bool:
    # Docker redirects packets for the host's port to a container that publishes this port.
    return flow_stop.stop.verb == "redirects" and flow_stop.flow.direction is FlowDirection.GATEWAY


def _meaning(flow_stops: list[FlowStop], owner: str, text: str | None, namespace: Namespace) -> str:
    stop = flow_stops[0].stop
    key = stop.chain.key
    legacy = "legacy " if key.backend == "legacy" else ""
    position = visible(f"{legacy}table {key.family} {key.table}, chain {key.name} ({owner})")
    if text is None:
        subject = "its policy"
    else:
        number = "" if stop.rule is None or stop.rule.handle is None else f" {stop.rule.handle}"
        subject = f"rule{number} `{text}`"
    certain = [flow_stop for flow_stop in flow_stops if flow_stop.is_certain]
    uncertain = [flow_stop for flow_stop in flow_stops if not flow_stop.is_certain]
    parts = [f"{stop.verb} {_flows(certain)}"] if certain else []
    if uncertain:
        verb = stop.verb if stop.verb.startswith("may ") else f"may stop ({stop.verb})"
        parts.append(f"{verb} {_flows(uncertain)}")
    sentence = f"{position}: {subject} {', and '.join(parts)}"
    undecided = next(
        (rule for flow_stop in uncertain for rule in flow_stop.undecided if rule is not stop.rule),
        None,
    )
    if undecided is not None:
        depends = _rule_text(undecided, namespace)
        sentence += f"; it depends on `{depends}`, whose result can't be predicted"
    return sentence


def _flows(flow_stops: list[FlowStop]) -> str:
    found: dict[FlowDirection, dict[str, set[int]]] = {}
    for flow_stop in flow_stops:
        labels = found.setdefault(flow_stop.flow.direction, {})
        labels.setdefault(flow_stop.flow.label, set()).add(flow_stop.flow.packet.version)
    parts = []
    for direction, labels in found.items():
        versions = sorted({version for each in labels.values() for version in each})
        families = " and ".join(f"IPv{version}" for version in versions)
        parts.append(f"{direction.value} ({', '.join(labels)}; {families})")
    return ", ".join(parts)


def _remedy(owner: str, *, has_commands: bool) -> str:
    if not has_commands:
        return (
            f"make {owner} accept this traffic, or change the rule: no command is shown, because "
            "none fits, its names can't be written safely, or only its owner can change the table"
        )
    if owner == firewalls.FIREWALLD:
        return "allow it in firewalld, with a separate zone and policy; they are permanent"
    if owner == firewalls.UFW:
        return "allow it in ufw; the rules are permanent"
    remedy = "allow it before that rule; a restart removes the new rule unless it is saved"
    if owner in firewalls.REINSERTING:
        remedy += f", and {owner} may insert its own rules before it again"
    return remedy


def _rule_text(rule: Rule, namespace: Namespace) -> str:
    text = rule.text or _nft_text(rule, namespace)
    if text is None:
        text = orjson.dumps([{kind: body} for kind, body in rule.statements]).decode()
    shown = visible(text)
    return shown if len(shown) <= _RULE_CHARACTERS else f"{shown[:_RULE_CHARACTERS]}…"


def _nft_text(rule: Rule, namespace: Namespace) -> str | None:
    key = rule.chain
    if not firewalls.is_plain(key):
        return None
    command = [str(nft.find()), "-a", "-s", "-t", "list", "chain", key.family, key.table, key.name]
    try:
        listed = command_output(namespace, command).decode("utf-8", "surrogateescape")
    except CommandError:  # the chain has been removed since
        return None
    for line in listed.splitlines():
        text, separator, handle = line.rpartition(" # handle ")
        if separator and handle == str(rule.handle):
            return text.strip()
    return None
