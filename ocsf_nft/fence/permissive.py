"""Conversion of a policy file to its permissive form, which logs packets but refuses none.

Each ``drop`` and ``reject`` becomes ``accept``, also in chain policies. Added rules prevent that an
accepted packet is counted again, or that answers are counted.
"""

from __future__ import annotations

import re
from typing import Final

_COMMENT: Final = re.compile(r"^\s*#")
_REJECT_WITH: Final = r"(?: with (?:tcp reset|icmp[x46v]* (?:type )?[a-z-]+))?"
#: A statement that refuses, not a part of a name.
_REFUSAL: Final = re.compile(rf"(?<![\w.-])(?:drop|reject{_REJECT_WITH})(?![\w.-])")
#: Rule that counts the frames which are refused on an uplink: a permissive fence sends them.
_STOPPED: Final = re.compile(r"^\t+oif @uplinks counter name stopped_link\n", re.MULTILINE)
#: Quoted text may contain one of these words without being a statement.
_QUOTED: Final = re.compile(r'"[^"]*"')
#: An accepted packet passes further hooks, and causes other packets, such as answers. Therefore
#: ``jump skip_egress`` is added before ``jump account_egress``, and ``jump mark_egress`` after it.
_ACCOUNTED: Final = re.compile(r"^(\t+)jump account_([\w-]+)\n", re.MULTILINE)
#: Chains of ``rules/permissive.nft`` (for a VM ``rules/permissive_tap.nft``). A chain ``mark_…``
#: marks a counted packet, and stores its destination. A chain ``skip_…`` accepts packets that must
#: not be counted: a counted packet at later hooks, by its mark, and the packets that it causes, by
#: the stored destination.
_PERMISSIVE_CHAIN: Final = re.compile(r"^\tchain ((?:skip|mark)_[\w-]+) \{$", re.MULTILINE)
#: Beginning of a policy file's own rules: their accounting.
_BEGIN: Final = re.compile(r"^# accounting\.nft: ", re.MULTILINE)


def make_permissive(policy: str, additions: str) -> str:
    """Return ``policy``, an nftables ruleset, changed to log packets but refuse none.

    ``additions``, which may be empty, are nftables chains to insert. These chains prevent that an
    allowed packet is counted twice. Raises AssertionError if ``policy`` has an unexpected form.
    """
    chains = set(_PERMISSIVE_CHAIN.findall(additions))
    lines = "".join(map(_accept, _STOPPED.sub("", policy).splitlines(keepends=True)))
    accounted = _ACCOUNTED.sub(lambda found: _add_jumps(found, chains), lines)
    if not additions:
        return accounted
    begin = _BEGIN.search(accounted)
    if begin is None:
        raise AssertionError("the policy file must mark where its accounting is inserted")
    return f"{accounted[: begin.start()]}{additions}\n{accounted[begin.start() :]}"


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
    # Names of sandboxes and interfaces are inserted after the conversion: a name could be mistaken
    # for a statement.
    if '"' in line.replace('"lo"', ""):
        raise AssertionError(f"a line that refuses must not contain names: {line.strip()}")
    return _REFUSAL.sub("accept", line)


def _add_jumps(found: re.Match[str], chains: set[str]) -> str:
    indent, rule = found.groups()
    before = f"{indent}jump skip_{rule}\n" if f"skip_{rule}" in chains else ""
    after = f"{indent}jump mark_{rule}\n" if f"mark_{rule}" in chains else ""
    return f"{before}{found[0]}{after}"
