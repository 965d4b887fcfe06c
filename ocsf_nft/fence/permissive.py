"""Conversion of a policy file to its permissive form, which logs packets but refuses none.

A policy file (``rules/*.nft``) refuses packets by the policy of a base chain, and by the statements
``drop`` and ``reject``. The conversion replaces each of these by ``accept``.

An accepted packet passes further hooks, and causes other packets, such as answers. But the packet
must be counted only once, and the other packets not at all. So the conversion adds a jump before
and after each jump to a chain that counts packets. For example:

- ``jump skip_egress`` is added before ``jump account_egress``. The chain ``skip_egress`` accepts
  packets that must not be counted.
- ``jump mark_egress`` is added after ``jump account_egress``. The chain ``mark_egress`` marks the
  packet, and stores its destination. Chains ``skip_…`` identify the packet at later hooks by the
  mark, and the other packets by the stored destination.

The chains ``skip_…`` and ``mark_…`` are in ``rules/permissive.nft`` (for a VM in
``rules/permissive_tap.nft``). If the file lacks a chain, no jump to this chain is added.

Names of sandboxes and network interfaces are inserted after the conversion. Otherwise the
conversion could mistake a name for a statement.
"""

from __future__ import annotations

import re
from typing import Final

_COMMENT: Final = re.compile(r"^\s*#")
_REJECT_WITH: Final = r"(?: with (?:tcp reset|icmp[x46v]* (?:type )?[a-z-]+))?"
#: A statement that refuses, not a part of a name.
_REFUSAL: Final = re.compile(rf"(?<![\w.-])(?:drop|reject{_REJECT_WITH})(?![\w.-])")
#: Quoted text may contain one of these words without being a statement.
_QUOTED: Final = re.compile(r'"[^"]*"')
_ACCOUNTED: Final = re.compile(r"^(\t+)jump account_([\w-]+)\n", re.MULTILINE)
_PERMISSIVE_CHAIN: Final = re.compile(r"^\tchain ((?:skip|mark)_[\w-]+) \{$", re.MULTILINE)
#: Beginning of a policy file's own rules: their accounting.
_BEGIN: Final = re.compile(r"^# accounting\.nft: ", re.MULTILINE)


def make_permissive(policy: str, additions: str) -> str:
    """Return the permissive form of a policy file's text, with the chains of ``additions``.

    ``additions`` is the text of a file such as ``rules/permissive.nft``; it may be empty. Raises
    AssertionError if the conversion could be wrong, for example because of a comment after a
    statement.
    """
    chains = set(_PERMISSIVE_CHAIN.findall(additions))
    lines = "".join(map(_accept, policy.splitlines(keepends=True)))
    accounted = _ACCOUNTED.sub(lambda found: _add_jumps(found, chains), lines)
    if not additions:
        return accounted
    begin = _BEGIN.search(accounted)
    if begin is None:
        raise AssertionError("the policy file must mark where its accounting is inserted")
    return f"{accounted[: begin.start()]}{additions}\n{accounted[begin.start() :]}"


def refusals(policy: str) -> tuple[str, ...]:
    """Return the lines of a policy file that refuse packets, without their indentation."""
    return tuple(line.strip() for line in policy.splitlines() if _REFUSAL.search(_unquoted(line)))


def _unquoted(line: str) -> str:
    if _COMMENT.match(line):
        return ""
    unquoted = _QUOTED.sub('""', line)
    if "#" in unquoted:
        raise AssertionError(f"a comment must have its own line: {line.strip()}")
    return unquoted


def _accept(line: str) -> str:
    if not _REFUSAL.search(_unquoted(line)):
        return line
    if '"' in line.replace('"lo"', ""):
        raise AssertionError(f"a line that refuses must not contain names: {line.strip()}")
    return _REFUSAL.sub("accept", line)


def _add_jumps(found: re.Match[str], chains: set[str]) -> str:
    indent, rule = found.groups()
    before = f"{indent}jump skip_{rule}\n" if f"skip_{rule}" in chains else ""
    after = f"{indent}jump mark_{rule}\n" if f"mark_{rule}" in chains else ""
    return f"{before}{found[0]}{after}"
