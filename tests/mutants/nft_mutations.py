"""Small mutations of an nftables policy file: one line changed or removed at a time."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: One token of a rule: a quoted text, braces or parentheses with their contents, or a word.
_TOKEN: Final = re.compile(r'"[^"]*"|\{[^}]*\}|\([^)]*\)|\S+')
#: Words that begin a match.
_MATCHES: Final = re.compile(
    "arp|ct|ether|exthdr|fib|frag|icmp|icmpv6|iif|iifname|ip|ip6|meta|oif|oifname|tcp|udp|vlan"
    r"|@th,[\d,]+"
)
#: Words that begin a statement.
_STATEMENTS: Final = re.compile(
    "accept|add|counter|delete|drop|goto|jump|limit|log|masquerade|reject|return|update"
)
#: After one of these words a word that could begin a match is an operand.
_OPERATORS: Final = re.compile(r"\.|original|type|l4proto|nexthdr|protocol|ptype|exthdr|\|")
_VERDICTS: Final = (
    (re.compile(r"\baccept$"), ("drop", "return")),
    (re.compile(r"\bdrop$"), ("accept",)),
    (re.compile(r"\breturn$"), ("accept", "drop")),
    (re.compile(r"\bgoto refuse_[\w-]+$"), ("accept", "drop")),
    (re.compile(r"\b(?:goto|jump) (?!refuse_|account_)[\w-]+$"), ("accept", "drop")),
    (re.compile(r"\breject with tcp reset$"), ("reject with icmpx admin-prohibited", "drop")),
    (re.compile(r"\breject with icmpx admin-prohibited$"),
     ("reject with icmpx port-unreachable", "drop", "accept")),
)  # fmt: skip
_POLICIES: Final = {"drop": "accept", "accept": "drop"}
#: Other priorities for a base chain, on both sides of its neighbours.
_PRIORITIES: Final = {
    "filter": ("raw", "security", "500"),
    "raw": ("filter", "-500"),
    "-500": ("0", "500", "-499"),
    "-20": ("20", "filter", "-500"),
    "mangle": ("raw", "-90"),
    "srcnat": ("filter", "300"),
    "500": ("filter", "1000", "-500"),
    "2147483647": ("filter", "1000", "-500"),
}
_NUMBER: Final = re.compile(r"(?<![\w.:$-])(?:0x[0-9a-f]+|\d+)(?![\w.:])")
_PREFIX: Final = re.compile(r"(?<=[\da-f:]/)\d+\b")
_RANGE: Final = re.compile(r"(?<=\d-)\d+(?!\w)")
_TIMES: Final = ("1s", "5s", "24h")


class Mutant(NamedTuple):
    """One changed line of a policy file; ``after`` is empty if the line is removed."""

    file: str
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """Return the identifier of the mutant, which is the same in any run."""
        return hashlib.sha256("\0".join(map(str, self)).encode()).hexdigest()[:12]

    def applied(self, text: str) -> str:
        """Return the policy file's text with the mutation."""
        lines = text.splitlines(keepends=True)
        if lines[self.line - 1].strip() != self.before:
            raise ValueError(f"{self.file}:{self.line} is not {self.before!r} any more")
        lines[self.line - 1] = f"\t\t{self.after}\n" if self.after else ""
        return "".join(lines)


def mutants(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a policy file, each once, in the order of its lines."""
    found: dict[Mutant, None] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line and not line.startswith("#"):
            found.update(dict.fromkeys(Mutant(file, number, line, after) for after in _of(line)))
    return [mutant for mutant in found if mutant.after != mutant.before]


def _of(line: str) -> Iterator[str]:
    if line.startswith(("table ", "delete table ", "chain ", "set ", "comment ", "}")):
        return
    if line.startswith("counter ") and line.endswith("{ }"):
        return
    if line.startswith("type ") and "hook" in line:
        yield from _base_chain(line)
    elif line.startswith(("typeof ", "type ", "size ", "flags ", "timeout ")) or line == "counter":
        yield from _set_property(line)
    elif line.startswith("define "):
        yield from _numbers(line)
        yield from _elements(line)
        if '"' not in line:
            yield from _values(line)
    else:
        yield from _rule(line)


def _base_chain(line: str) -> Iterator[str]:
    for policy, other in _POLICIES.items():
        if f"policy {policy};" in line:
            yield line.replace(f"policy {policy};", f"policy {other};")
    priority = re.search(r"priority (\S+);", line)
    if priority is None:
        raise ValueError(line)
    for other in _PRIORITIES[priority[1]]:
        yield line.replace(priority[0], f"priority {other};")
    if "devices = $links" in line:
        yield line.replace("devices = $links", 'devices = { "lo" }')


def _set_property(line: str) -> Iterator[str]:
    yield ""
    name, _, value = line.partition(" ")
    if name == "size":
        yield from (f"size {size}" for size in (int(value) // 16, int(value) * 16, 2) if size)
    elif name == "timeout":
        yield from (f"timeout {time}" for time in _TIMES)
    elif name == "flags":
        flags = value.split(", ")
        for flag in flags if len(flags) > 1 else ():
            yield "flags " + ", ".join(each for each in flags if each != flag)
    elif name in {"type", "typeof"}:
        parts = value.split(" . ")
        for index in range(len(parts)):
            if len(parts) > 1:
                yield f"{name} " + " . ".join(parts[:index] + parts[index + 1 :])


def _rule(line: str) -> Iterator[str]:
    yield ""
    parts = _parts(line)
    for index in range(len(parts)):
        if len(parts) > 1:
            yield " ".join(parts[:index] + parts[index + 1 :])
    for pattern, others in _VERDICTS:
        for other in others:
            yield pattern.sub(other, line)
    yield line.replace(" == ", " != ")
    yield line.replace(" != ", " == ")
    if "jump account_" not in line and "jump log_" not in line:  # only a verdict follows
        yield line.replace("jump ", "goto ")
    yield from _numbers(line)
    yield from _elements(line)
    yield from _budget(line)
    yield line.replace('log prefix "ocsf-nft:', 'log prefix "ocsf:')


def _parts(rule: str) -> list[str]:
    """Return the matches and statements of a rule."""
    parts: list[list[str]] = []
    before = ""
    in_brace_block = rule.endswith("{")
    for token in _TOKEN.findall(rule.removesuffix(" {") if in_brace_block else rule):
        starts = _STATEMENTS.fullmatch(token) or (
            _MATCHES.fullmatch(token) and not _OPERATORS.fullmatch(before)
        )
        # The operand of `arp saddr ip`, of `fib … . iif oif`, or of a statement.
        if parts and _is_operand(parts[-1], token):
            starts = None
        if starts or not parts:
            parts.append([])
        parts[-1].append(token)
        before = token
    joined = [" ".join(part) for part in parts]
    if in_brace_block:  # `update @set { … } goto {` opens a block: its end stays
        joined[-1] += " {"
    return joined


def _is_operand(part: list[str], word: str) -> bool:
    return (
        (part[0] == "arp" and part[1:] in (["saddr"], ["daddr"]))
        or (part[0] == "fib" and word in {"iif", "oif"} and part[-1] in {".", "iif"})
        or (part[0] in {"counter", "goto", "jump"} and len(part) == 1)
        or (part[0] == "reject" and word == "tcp")
        or part[-1] == "set"
    )


def _numbers(line: str) -> Iterator[str]:
    for pattern in (_NUMBER, _PREFIX, _RANGE):
        for found in pattern.finditer(line):
            base = 16 if found[0].startswith("0x") else 10
            value = int(found[0], base)
            for other in (value - 1, value + 1):
                if other >= 0:
                    written = hex(other) if base == 16 else str(other)
                    yield line[: found.start()] + written + line[found.end() :]


def _elements(line: str) -> Iterator[str]:
    for found in re.finditer(r"\{ ([^{}]*) \}|\(([^()]*)\)", line):
        inner = found[1] or found[2]
        separator = ", " if found[1] else " | "
        elements = inner.split(separator)
        for index in range(len(elements)):
            if len(elements) > 1:
                fewer = separator.join(elements[:index] + elements[index + 1 :])
                yield line.replace(inner, fewer)


def _values(line: str) -> Iterator[str]:
    """Mutate the address of a definition."""
    name, _, value = line.partition(" = ")
    if re.fullmatch(r"[\d.]+/\d+", value):
        yield f"{name} = 10.0.0.0/8"


def _budget(line: str) -> Iterator[str]:
    for pattern in (r"(?<=limit rate )\d+", r"(?<=burst )\d+"):
        for found in re.finditer(pattern, line):
            for other in (int(found[0]) * 10, int(found[0]) // 10 or None):
                if other:
                    yield line[: found.start()] + str(other) + line[found.end() :]
