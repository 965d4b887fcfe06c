"""Detection and removal of old iptables rules for virtual machines (VMs).

A rule is old if its VM's interface no longer exists, or if a fence of ocsf-nft replaces the rule.
Rules that a program such as ufw or Docker manages are not removed.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import firewalls, read_ruleset, xtables
from ocsf_nft.check.bounded_command import CommandError, command_output
from ocsf_nft.check.finding import Finding, RuleLocation
from ocsf_nft.check.firewalls import IPTABLES, LEGACY, NFTABLES
from ocsf_nft.check.ruleset import is_iptables_table
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import nft
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.accepted_flows import CheckScope
    from ocsf_nft.check.devices import NetDevice
    from ocsf_nft.check.ruleset import Chain, ChainKey, Rule, Ruleset
    from ocsf_nft.netns import Namespace

#: Pattern of VMs' interface names. In a chain's name it also matches a suffix such as ``-in``.
_VM_DEVICE: Final = re.compile(r"vmtap-[A-Za-z0-9_.-]+")
#: Link kind of a TAP device (drivers/net/tun.c).
_TAP: Final = "tun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Rule, or whole chain (``rule`` is None), that an older iptables set-up for VMs left behind.

    ``reason`` is a text such as "it is for vmtap-3, which does not exist".
    """

    chain: Chain
    rule: Rule | None
    reason: str

    @property
    def text(self) -> str:
        """Return a text about the rule or chain, such as "rule in ip filter FORWARD: …"."""
        key = self.chain.key
        legacy = "legacy " if key.backend == "legacy" else ""
        position = f"{legacy}{key.family} {key.table} {key.name}"
        if self.rule is None:
            return visible(f"chain {position}, with the {len(self.chain.rules)} rules in it")
        number = "" if self.rule.handle is None else f" handle {self.rule.handle}"
        return visible(f"rule{number} in {position}: {_text(self.rule)}")


def find_leftovers(
    ruleset: Ruleset, present: Mapping[str, NetDevice], scope: CheckScope
) -> list[Leftover]:
    """Return the rules and chains that an older iptables set-up for VMs left behind.

    A rule or chain is returned if the network interface of its VM is not in ``present``. If
    ``scope`` has a single VM, its rules and chains are returned too, even if its interface exists.
    """
    test = _LeftoverTest(present, scope)
    candidates = [chain for chain in ruleset.chains.values() if _may_hold_leftovers(chain, ruleset)]
    reasons = {chain.key: reason for chain in candidates if (reason := test.chain(chain))}
    of_rules: list[Leftover] = []
    of_chains: list[Leftover] = []
    for chain in candidates:
        if chain.key in reasons:
            of_chains.append(Leftover(chain=chain, rule=None, reason=reasons[chain.key]))
            continue
        for rule in chain.rules:
            reason = test.rule(rule) or _jump_reason(rule, reasons)
            if reason:
                of_rules.append(Leftover(chain=chain, rule=rule, reason=reason))
    return of_rules + of_chains


def findings(found: list[Leftover]) -> Iterator[Finding]:
    """Yield a finding for each leftover rule or chain."""
    for leftover in found:
        rule = leftover.rule
        yield Finding(
            name="leftover",
            severity="degraded",
            meaning=f"{leftover.text}: {leftover.reason}",
            remedy="remove it with `ocsf-nft check --remove-leftovers`, and the same options",
            location=RuleLocation.of_chain(
                leftover.chain.key,
                handle=None if rule is None else rule.handle,
                rule=None if rule is None else visible(_text(rule)),
            ),
        )


def remove(found: list[Leftover], namespace: Namespace) -> Iterator[tuple[Leftover, str | None]]:
    """Remove leftover iptables rules and chains; yield each with None, or why it was not removed.

    A leftover that has changed since it was found is not removed. After a failure, the removal
    continues with the next leftover.
    """
    for leftover in found:
        try:
            now = read_ruleset.read(namespace)
            if not _is_unchanged(leftover, now):
                yield leftover, "it has changed meanwhile"
                continue
            if leftover.rule is None and _is_jump_target(leftover.chain.key, now):
                yield leftover, "other rules lead to it"
                continue
            for command in _commands(leftover):
                command_output(namespace, command)
        except (CommandError, FenceError) as error:
            yield leftover, visible(str(error))
        else:
            yield leftover, None


class _LeftoverTest:
    """Detector of chains and rules that an older iptables set-up for VMs left behind.

    Each method returns the reason why its argument is a leftover, or None if it is not.
    """

    def __init__(self, present: Mapping[str, NetDevice], scope: CheckScope) -> None:
        self._present = present
        # The fence of the single VM that the user checks replaces the old rules for this VM.
        device = scope.device or "*"
        # Rules for an interface that can't be a VM's (loopback, uplink, bridge) are no leftovers.
        is_vm_device = device not in present or present[device].kind == _TAP
        self._device = device if is_vm_device and not device.endswith("*") else None
        self._networks = [subnet.network for subnet in scope.subnets]

    def chain(self, chain: Chain) -> str | None:
        if chain.base is not None:
            return None
        name = chain.key.name
        if self._device is not None and re.search(
            rf"(?<![A-Za-z0-9]){re.escape(self._device)}(?![A-Za-z0-9])", name
        ):
            return f"it is named after {self._device}"
        found = _VM_DEVICE.search(name)
        if found and not any(found[0].startswith(device) for device in self._present if device):
            return f"it is named after {found[0]}, which does not exist"
        return None

    def rule(self, rule: Rule) -> str | None:
        for device in _devices(rule):
            if _VM_DEVICE.fullmatch(device) and device not in self._present:
                return f"it is for {device}, which does not exist"
            # `check` suggests commands that add rules with this comment.
            if device == self._device and rule.comment != firewalls.COMMENT:
                return f"it is for {device}, which a fence handles"
        # The usual NAT rule for a subnet excludes the interface of that subnet.
        excluded = set(_devices(rule, "!=")) - {self._device}
        if excluded & self._present.keys() or not any(map(_is_nat, rule.statements)):
            return None
        translated = (network for network in _sources(rule) if network in self._networks)
        network = next(translated, None)
        return None if network is None else f"it translates {network}, which a fence handles"


def _may_hold_leftovers(chain: Chain, ruleset: Ruleset) -> bool:
    if not is_iptables_table(chain.key):
        return False
    if chain.base is not None or chain.key.name == "DOCKER-USER":
        return True
    return firewalls.owner(chain, ruleset) in {IPTABLES, LEGACY, NFTABLES}


def _jump_reason(rule: Rule, leftover_chains: Mapping[ChainKey, str]) -> str | None:
    for kind, body in rule.statements:
        if kind in {"jump", "goto"} and isinstance(body, dict):
            key = rule.chain._replace(name=str(body.get("target")))
            if key in leftover_chains:
                return f"it leads to chain {visible(key.name)}: {leftover_chains[key]}"
    return None


def _is_jump_target(key: ChainKey, ruleset: Ruleset) -> bool:
    return any(
        _jump_reason(rule, {key: ""})
        for chain in ruleset.chains.values()
        if chain.key != key
        for rule in chain.rules
    )


def _matches(rule: Rule, operator: str = "==") -> Iterator[tuple[Any, Any]]:
    for kind, body in rule.statements:
        if kind == "match" and isinstance(body, dict) and body.get("op") == operator:
            yield body.get("left"), body.get("right")


def _devices(rule: Rule, operator: str = "==") -> list[str]:
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


def _is_nat(statement: tuple[str, Any]) -> bool:
    kind, body = statement
    if kind == "xt" and isinstance(body, dict):
        return str(body.get("name")) in {"MASQUERADE", "SNAT"}
    return kind in {"masquerade", "snat"}


def _text(rule: Rule) -> str:
    return rule.text or " ".join(kind for kind, _ in rule.statements)


def _is_unchanged(leftover: Leftover, now: Ruleset) -> bool:
    chain = now.chains.get(leftover.chain.key)
    if chain is None:
        return False
    rules = list(map(_without_counters, chain.rules))
    if leftover.rule is None:
        return rules == list(map(_without_counters, leftover.chain.rules))
    return _without_counters(leftover.rule) in rules


def _without_counters(rule: Rule) -> tuple[Any, ...]:
    statements = [(kind, body) for kind, body in rule.statements if kind != "counter"]
    return rule.handle, rule.text, statements


def _commands(leftover: Leftover) -> Iterator[list[str]]:
    key, rule = leftover.chain.key, leftover.rule
    if key.backend == "legacy":  # nft doesn't list these rules
        program = nft.find_program("iptables-legacy" if key.family == "ip" else "ip6tables-legacy")
        if program is None:
            raise CommandError("iptables-legacy is not installed")
        # -w: wait while another process changes the tables.
        start = [str(program), "-w", "5", "-t", key.table]
        if rule is None:
            yield [*start, "-F", key.name]
            yield [*start, "-X", key.name]
        elif rule.text is not None:
            _append, _chain, *arguments = xtables.split(rule.text)
            yield [*start, "-D", key.name, *arguments]
        return
    if not firewalls.is_plain(key):
        raise CommandError("its name can't be written safely")
    binary = str(nft.find())
    chain = [key.family, key.table, key.name]
    if rule is None:
        yield [binary, "flush", "chain", *chain, ";", "delete", "chain", *chain]
    else:
        yield [binary, "delete", "rule", *chain, "handle", str(rule.handle)]
