"""Translation of the output of iptables-save into rules in the form of nft's JSON.

An option that this module does not know becomes a match with a result that is always unknown.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.check.ruleset import BaseSpec, Chain, ChainKey, Rule
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from ocsf_nft.check.ruleset import Backend

#: One argument. In a quoted one, a backslash escapes a quote or a backslash (xtables_save_string).
_ARGUMENT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_COUNTERS: Final = re.compile(r"\[\d+:\d+\]\s+")
#: Hook priorities of the built-in tables' chains (linux/netfilter_ipv4.h).
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT_PRIORITIES: Final = {"PREROUTING": -100, "OUTPUT": -100, "INPUT": 100, "POSTROUTING": 100}
_HOOKS: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_MASK: Final = 0xFFFFFFFF


def chains(saved: str, family: str, backend: Backend) -> dict[ChainKey, Chain]:
    """Return the chains in the output of iptables-save, with rules in the form of nft's JSON.

    ``family`` is ``ip`` or ``ip6``. ``backend`` is ``legacy`` for the kernel's old iptables, else
    ``nft``. Raises UsageError for an invalid line.
    """
    table = ""
    bases: dict[ChainKey, BaseSpec | None] = {}
    lines: dict[ChainKey, list[str]] = {}
    for raw in saved.splitlines():
        line = _COUNTERS.sub("", raw, count=1) if raw.startswith("[") else raw
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy = _chain(line)
            bases[ChainKey(backend, family, table, name)] = _base(table, name, policy)
        elif line.startswith("-A "):
            _append, name, *_ = [*split(line), ""]
            lines.setdefault(ChainKey(backend, family, table, name), []).append(line)
        elif line and not line.startswith("#") and line != "COMMIT":
            raise _bad_line(line)
    return {
        key: Chain(
            key=key,
            base=base,
            rules=tuple(_RuleParser(key, bases).parse(line) for line in lines.get(key, ())),
        )
        for key, base in bases.items()
    }


def _chain(line: str) -> tuple[str, str | None]:
    words = line[1:].split()
    # A name with a blank, which iptables doesn't create, could be mistaken for another chain.
    if len(words) != 3 or not words[2].startswith("["):
        raise _bad_line(line)
    name, policy, _counters = words
    return name, None if policy == "-" else policy.lower()


def _bad_line(line: str) -> UsageError:
    return UsageError(f"this is no line of iptables-save: {quoted(line[:80])}")


def split(line: str) -> list[str]:
    """Return the arguments of a line of iptables-save, without their quotes."""
    return [
        found[2] if found[1] is None else re.sub(r"\\(.)", r"\1", found[1])
        for found in _ARGUMENT.finditer(line)
    ]


def _base(table: str, name: str, policy: str | None) -> BaseSpec | None:
    if policy is None or name not in _HOOKS:
        return None
    is_nat = table == "nat"
    priority = _NAT_PRIORITIES.get(name, 0) if is_nat else _PRIORITIES.get(table, 0)
    return BaseSpec(
        kind="nat" if is_nat else "filter", hook=name.lower(), priority=priority, policy=policy
    )


def _match(left: Any, right: Any, *, inverted: bool) -> tuple[str, Any]:
    return "match", {"op": "!=" if inverted else "==", "left": left, "right": right}


_UNKNOWN: Final = ("xt", {"type": "match", "name": None})
#: Targets for which nft has a statement with the same name.
_TARGETS: Final = frozenset(
    {"ACCEPT", "DROP", "RETURN", "REJECT", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NOTRACK"}
    | {"QUEUE", "TPROXY"}
)
#: Modules for headers that no accepted packet has. Not icmp6: a rule with it also has ``-p``.
_OTHER_PACKETS: Final = frozenset(
    {"icmp", "rt", "frag", "hbh", "dst", "mh", "ah", "esp", "sctp", "dccp"}
)
_NEVER: Final = _match({"exthdr": {"name": "rt", "field": "type"}}, 0, inverted=False)


class _RuleParser:
    def __init__(self, key: ChainKey, jump_targets: Container[ChainKey]) -> None:
        self._key = key
        self._jump_targets = jump_targets
        self._protocol = "th"
        self._found: list[tuple[str, Any]] = []
        self._comment: str | None = None

    def parse(self, line: str) -> Rule:
        _append, _chain, *arguments = split(line)
        self._parse_options(iter(arguments))
        return Rule(
            chain=self._key, statements=tuple(self._found), text=line, comment=self._comment
        )

    def _parse_options(self, arguments: Iterator[str]) -> None:
        inverted = False
        for argument in arguments:
            if argument == "!":
                inverted = True
                continue
            self._parse_option(argument, arguments, inverted=inverted)
            inverted = False

    def _parse_option(self, option: str, rest: Iterator[str], *, inverted: bool) -> None:
        if option in {"-j", "-g"}:
            self._found.extend(self._target(option, next(rest, ""), list(rest)))
        elif option == "-m":
            module = next(rest, "")
            if module not in _MODULES:
                self._parse_target_after(module, list(rest))
        elif option == "--limit":
            next(rest, "")
            self._found.append(("limit", None))
        elif option == "--comment":
            self._comment = next(rest, "")
        elif option in _READERS:
            method, argument = _READERS[option]
            self._found.append(method(self, argument, next(rest, ""), inverted))
        elif option == "--tcp-flags":
            self._found.append(_tcp_flags(next(rest, ""), next(rest, ""), inverted=inverted))
        elif option.startswith("-") and option != "--limit-burst":
            self._found.append(_UNKNOWN)

    def _parse_target_after(self, module: str, rest: list[str]) -> None:
        # The options of an unknown module can't be distinguished from their values. So only the
        # target, which comes last, is parsed after it.
        self._found.append(_NEVER if module in _OTHER_PACKETS else _UNKNOWN)
        targets = [at for at, argument in enumerate(rest) if argument in {"-j", "-g"}]
        if targets:
            self._parse_options(iter(rest[targets[-1] :]))

    def _target(self, option: str, name: str, rest: list[str]) -> Iterator[tuple[str, Any]]:
        if self._key._replace(name=name) in self._jump_targets:
            yield ("goto" if option == "-g" else "jump"), {"target": name}
            return
        if name in _TARGETS:
            yield name.lower(), None
        elif name == "NFQUEUE":
            yield "queue", None
        elif name == "CT":
            yield ("notrack" if "--notrack" in rest else "ct helper"), None
        elif name == "MARK":
            yield _set_mark(rest)
        else:
            yield "xt", {"type": "target", "name": name}

    def by_interface(self, key: str, text: str, inverted: bool) -> tuple[str, Any]:
        name = f"{text[:-1]}*" if text.endswith("+") else _literal(text)
        return _match({"meta": {"key": key}}, name, inverted=inverted)

    def by_address(self, field: str, text: str, inverted: bool) -> tuple[str, Any]:
        left = {"payload": {"protocol": self._key.family, "field": field}}
        address, _, mask = text.partition("/")
        try:
            network = ipaddress.ip_network(f"{address}/{mask}" if mask else address)
        except ValueError:
            return _UNKNOWN
        right = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
        return _match(left, right, inverted=inverted)

    def by_address_range(self, field: str, text: str, inverted: bool) -> tuple[str, Any]:
        left = {"payload": {"protocol": self._key.family, "field": field}}
        return _match(left, {"range": text.split("-")}, inverted=inverted)

    def by_protocol(self, _: str, text: str, inverted: bool) -> tuple[str, Any]:
        if not inverted and text in {"tcp", "udp"}:
            self._protocol = text
        return _match({"meta": {"key": "l4proto"}}, text, inverted=inverted)

    def by_port(self, field: str, text: str, inverted: bool) -> tuple[str, Any]:
        left = {"payload": {"protocol": self._protocol, "field": field}}
        right = {"set": [_port(part) for part in text.split(",")]}
        return _match(left, right, inverted=inverted)

    def by_state(self, _: str, text: str, inverted: bool) -> tuple[str, Any]:
        states = [state.lower() for state in text.split(",")]
        if {"snat", "dnat"} & set(states):
            return _UNKNOWN
        # A packet in one of the states matches: a test for a common bit.
        operator = "!" if inverted else "in"
        return "match", {"op": operator, "left": {"ct": {"key": "state"}}, "right": states}

    def by_address_type(self, flag: str, text: str, inverted: bool) -> tuple[str, Any]:
        left = {"fib": {"result": "type", "flags": [flag]}}
        right = {"set": [kind.lower() for kind in text.split(",")]}
        return _match(left, right, inverted=inverted)

    def by_mark(self, _: str, text: str, inverted: bool) -> tuple[str, Any]:
        number, slash, mask = text.partition("/")
        left: Any = {"meta": {"key": "mark"}}
        if slash:
            left = {"&": [left, _number(mask)]}
        return _match(left, _number(number), inverted=inverted)


def _literal(name: str) -> str:
    return f"{name[:-1]}\\*" if name.endswith("*") else name


def _port(text: str) -> Any:
    low, colon, high = text.partition(":")
    if colon:
        return {"range": [_number(low or "0"), _number(high or "65535")]}
    return _number(text)


def _number(text: str) -> int | str:
    try:
        return int(text, 0)
    except ValueError:
        return text


def _set_mark(arguments: list[str]) -> tuple[str, Any]:
    key = {"meta": {"key": "mark"}}
    if len(arguments) == 2 and arguments[0] == "--set-xmark":
        number, _, mask = arguments[1].partition("/")
        mark, bits = _number(number), _number(mask or "0xffffffff")
        if isinstance(mark, int) and isinstance(bits, int):
            unchanged = {"&": [key, _MASK & ~bits]}
            return "mangle", {"key": key, "value": {"^": [unchanged, mark]}}
    return "xt", {"type": "target", "name": "MARK"}


def _tcp_flags(mask: str, flags: str, *, inverted: bool) -> tuple[str, Any]:
    left = {"payload": {"protocol": "tcp", "field": "flags"}}
    masked = {"&": [left, {"|": _flag_names(mask)}]}
    return _match(masked, {"|": _flag_names(flags)}, inverted=inverted)


def _flag_names(text: str) -> list[str]:
    if text == "NONE":
        return []
    names = "FIN,SYN,RST,PSH,ACK,URG" if text == "ALL" else text
    return names.lower().split(",")


_Reader: TypeAlias = "Callable[[_RuleParser, str, str, bool], tuple[str, Any]]"

#: Options with one value each, and the methods that make their matches.
_READERS: Final[Mapping[str, tuple[_Reader, str]]] = {
    "-i": (_RuleParser.by_interface, "iifname"),
    "-o": (_RuleParser.by_interface, "oifname"),
    "-s": (_RuleParser.by_address, "saddr"),
    "-d": (_RuleParser.by_address, "daddr"),
    "--src-range": (_RuleParser.by_address_range, "saddr"),
    "--dst-range": (_RuleParser.by_address_range, "daddr"),
    "-p": (_RuleParser.by_protocol, ""),
    "--sport": (_RuleParser.by_port, "sport"),
    "--dport": (_RuleParser.by_port, "dport"),
    "--sports": (_RuleParser.by_port, "sport"),
    "--dports": (_RuleParser.by_port, "dport"),
    "--ctstate": (_RuleParser.by_state, ""),
    "--state": (_RuleParser.by_state, ""),
    "--src-type": (_RuleParser.by_address_type, "saddr"),
    "--dst-type": (_RuleParser.by_address_type, "daddr"),
    "--mark": (_RuleParser.by_mark, ""),
}
#: Modules whose options are all known here, or become a match with an unknown result.
_MODULES: Final = frozenset(
    {"tcp", "udp", "multiport", "conntrack", "state", "addrtype", "mark", "comment", "limit"}
    | {"iprange"}
)
