"""Rules of an older iptables set-up for VMs: recognised, named, and removed when asked.

Three kinds: rules and chains for a VM's interface that is gone (or the one in question), and NAT
for its subnet. What our own advice has put there carries a comment, and stays as long as its
interface does; what ufw or Docker keep is theirs.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import allow_commands, chain_owner, read_ruleset, xtables
from ocsf_nft.check.bounded_command import NoAnswerError, answer
from ocsf_nft.check.chain_owner import IPTABLES, LEGACY, NFTABLES
from ocsf_nft.check.finding import Finding, Place
from ocsf_nft.check.ruleset import is_compatible
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import nft
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.devices import Device
    from ocsf_nft.check.diagnosis import Question
    from ocsf_nft.check.ruleset import Chain, Key, Rule, Ruleset
    from ocsf_nft.netns import Namespace

#: How VMs' interfaces are named; a shorter chain's name holds what follows the dash.
_MACHINE: Final = re.compile(r"vmtap-[A-Za-z0-9_.-]+")
#: The kind of a TAP device (drivers/net/tun.c).
_TAP: Final = "tun"
_NAT: Final = frozenset({"masquerade", "snat"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A rule, or (``rule`` is None) a whole chain with nothing else in it."""

    chain: Chain
    rule: Rule | None
    reason: str

    @property
    def text(self) -> str:
        """What it is, for a person."""
        key = self.chain.key
        legacy = "legacy " if key.backend == "legacy" else ""
        where = f"{legacy}{key.family} {key.table} {key.name}"
        if self.rule is None:
            return visible(f"chain {where}, with the {len(self.chain.rules)} rules in it")
        number = "" if self.rule.handle is None else f" handle {self.rule.handle}"
        shown = self.rule.text or _told(self.rule)
        return visible(f"rule{number} in {where}: {shown}")


def leftovers(
    ruleset: Ruleset, present: Mapping[str, Device], question: Question
) -> list[Leftover]:
    """What is left of an older set-up; ``present`` are the interfaces that there are."""
    wanted = _Wanted(present, question)
    doomed = {key: reason for key, chain in ruleset.chains.items()
              if (reason := wanted.chain(chain)) and _is_open(chain, ruleset)}  # fmt: skip
    found = []
    for chain in ruleset.chains.values():
        if chain.key in doomed or not _is_open(chain, ruleset):
            continue
        for rule in chain.rules:
            reason = wanted.rule(rule) or _leads_to(rule, doomed)
            if reason:
                found.append(Leftover(chain=chain, rule=rule, reason=reason))
    found += [
        Leftover(chain=ruleset.chains[key], rule=None, reason=reason)
        for key, reason in doomed.items()
    ]
    return found


def told(found: list[Leftover]) -> Iterator[Finding]:
    """A finding for each."""
    for leftover in found:
        key, rule = leftover.chain.key, leftover.rule
        yield Finding(
            name="leftover",
            severity="degraded",
            meaning=f"{leftover.text}: {leftover.reason}",
            remedy="remove it with `ocsf-nft check --remove-leftovers`, and the same options",
            place=Place(
                backend=key.backend,
                family=visible(key.family),
                table=visible(key.table),
                chain=visible(key.name),
                handle=None if rule is None else rule.handle,
                rule=None if rule is None else visible(rule.text or _told(rule)),
            ),
        )


def remove(found: list[Leftover], namespace: Namespace) -> Iterator[tuple[Leftover, str | None]]:
    """Remove each, unless it has changed by now; why it was not removed, or None.

    What went wrong with one doesn't keep the others.
    """
    for leftover in found:
        try:
            now = read_ruleset.read(namespace)
            if not _is_unchanged(leftover, now):
                yield leftover, "it has changed meanwhile"
                continue
            if leftover.rule is None and _is_led_to(leftover.chain.key, now):
                yield leftover, "other rules lead to it"
                continue
            for command in _commands(leftover):
                answer(namespace, command)
        except (NoAnswerError, FenceError) as error:
            yield leftover, visible(str(error))
        else:
            yield leftover, None


class _Wanted:
    """Tells what is a leftover's."""

    def __init__(self, present: Mapping[str, Device], question: Question) -> None:
        self._present = present
        device = question.device or "*"
        # Rules for the loopback, an uplink or a bridge are somebody's, whoever asks.
        is_machines = device not in present or present[device].kind == _TAP
        self._device = device if is_machines and not device.endswith("*") else None
        self._networks = [subnet.network for subnet in question.subnets]

    def chain(self, chain: Chain) -> str | None:
        if chain.base is not None:
            return None
        name = chain.key.name
        if self._device is not None and re.search(
            rf"(?<![A-Za-z0-9]){re.escape(self._device)}(?![A-Za-z0-9])", name
        ):
            return f"it is named for {self._device}"
        found = _MACHINE.search(name)
        if found and not any(found[0].startswith(device) for device in self._present if device):
            return f"it is named for {found[0]}, which isn't there"
        return None

    def rule(self, rule: Rule) -> str | None:
        for device in _devices(rule):
            is_gone = _MACHINE.fullmatch(device) and device not in self._present
            if is_gone:
                return f"it is for {device}, which isn't there"
            if device == self._device and rule.comment != allow_commands.COMMENT:
                return f"it is for {device}, which a fence takes care of"
        kinds = {kind for kind, _ in rule.statements}
        if any(name in self._present and name != self._device for name in _exempted(rule)):
            return None
        if kinds & _NAT or _targets(rule) & {"MASQUERADE", "SNAT"}:
            for network in _sources(rule):
                if network in self._networks:
                    return f"it translates {network}, which a fence takes care of"
        return None


def _is_open(chain: Chain, ruleset: Ruleset) -> bool:
    """Whether a chain may hold an iptables set-up's rules, and is not another program's own."""
    is_of_iptables = chain.key.backend == "legacy" or is_compatible(chain.key)
    if not is_of_iptables:
        return False
    if chain.base is not None or chain.key.name == "DOCKER-USER":
        return True
    return chain_owner.owner(chain, ruleset) in {IPTABLES, LEGACY, NFTABLES}


def _leads_to(rule: Rule, doomed: Mapping[Key, str]) -> str | None:
    for kind, body in rule.statements:
        if kind in {"jump", "goto"} and isinstance(body, dict):
            key = rule.chain._replace(name=str(body.get("target")))
            if key in doomed:
                return f"it leads to chain {visible(key.name)}: {doomed[key]}"
    return None


def _is_led_to(key: Key, ruleset: Ruleset) -> bool:
    return any(
        _leads_to(rule, {key: ""})
        for chain in ruleset.chains.values()
        if chain.key != key
        for rule in chain.rules
    )


def _matches(rule: Rule, operator: str = "==") -> Iterator[tuple[Any, Any]]:
    for kind, body in rule.statements:
        if kind == "match" and isinstance(body, dict) and body.get("op") == operator:
            yield body.get("left"), body.get("right")


def _exempted(rule: Rule) -> list[str]:
    """The interfaces that a rule is not for: NAT leaves out the one whose subnet it translates."""
    return _devices(rule, "!=")


def _devices(rule: Rule, operator: str = "==") -> list[str]:
    """The interfaces that a rule names one by one: a pattern is for more than one."""
    found = []
    for left, right in _matches(rule, operator):
        meta = left.get("meta") if isinstance(left, dict) else None
        key = meta.get("key") if isinstance(meta, dict) else None
        is_name = key in {"iifname", "oifname", "iif", "oif"} and isinstance(right, str)
        if is_name and not right.endswith("*"):
            found.append(right)
    return found


def _sources(rule: Rule) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for left, right in _matches(rule):
        payload = left.get("payload") if isinstance(left, dict) else None
        if not (isinstance(payload, dict) and payload.get("field") == "saddr"):
            continue
        prefix = right.get("prefix") if isinstance(right, dict) else None
        text = f"{prefix.get('addr')}/{prefix.get('len')}" if isinstance(prefix, dict) else right
        try:
            found.append(ipaddress.ip_network(str(text), strict=False))
        except ValueError:
            continue
    return found


def _targets(rule: Rule) -> set[str]:
    return {
        str(body.get("name"))
        for kind, body in rule.statements
        if kind == "xt" and isinstance(body, dict)
    }


def _told(rule: Rule) -> str:
    return " ".join(kind for kind, _ in rule.statements)


def _is_unchanged(leftover: Leftover, now: Ruleset) -> bool:
    chain = now.chains.get(leftover.chain.key)
    if chain is None:
        return False
    if leftover.rule is None:
        return [_essence(rule) for rule in chain.rules] == [
            _essence(rule) for rule in leftover.chain.rules
        ]
    return any(_essence(rule) == _essence(leftover.rule) for rule in chain.rules)


def _essence(rule: Rule) -> tuple[Any, ...]:
    """A rule without what its counters say."""
    kept = [(kind, body) for kind, body in rule.statements if kind != "counter"]
    return rule.handle, rule.text, kept


def _commands(leftover: Leftover) -> Iterator[list[str]]:
    """What removes it: argument lists, and nothing that a shell or nft could read otherwise.

    Raises NoAnswerError when there is no program, or a name can't be given to it.
    """
    key, rule = leftover.chain.key, leftover.rule
    if key.backend == "legacy":
        program = nft.program("iptables-legacy" if key.family == "ip" else "ip6tables-legacy")
        if program is None:
            raise NoAnswerError("iptables-legacy is not installed")
        # -w: others that change the tables are waited for.
        start = [str(program), "-w", "5", "-t", key.table]
        if rule is None:
            yield [*start, "-F", key.name]
            yield [*start, "-X", key.name]
        elif rule.text is not None:
            _append, _chain, *arguments = xtables.split(rule.text)
            yield [*start, "-D", key.name, *arguments]
        return
    if not (allow_commands.is_plain(key.table) and allow_commands.is_plain(key.name)):
        raise NoAnswerError("its name can't be written safely")
    binary = str(nft.find())
    where = [key.family, key.table, key.name]
    if rule is None:
        yield [binary, "flush", "chain", *where, ";", "delete", "chain", *where]
    else:
        yield [binary, "delete", "rule", *where, "handle", str(rule.handle)]
