"""The text of a policy, turned into that of a permissive fence. A pure function; runs on any OS.

A policy file refuses in two ways: by the policy of a base chain, and by the statements ``drop`` and
``reject``. All of them become ``accept``, and what ``rules/permissive.nft`` has (for a VM
``rules/permissive_tap.nft``) is put round the accounting of the rules that it is about. It is done
before any value is in the text: whatever a sandbox or a link is called, no name is taken for a
statement.
"""

from __future__ import annotations

import re
from typing import Final

_COMMENT: Final = re.compile(r"^\s*#")
_REJECT_WITH: Final = r"(?: with (?:tcp reset|icmp[x46v]* (?:type )?[a-z-]+))?"
#: A statement that refuses, and not a part of a name.
_REFUSAL: Final = re.compile(rf"(?<![\w.-])(?:drop|reject{_REJECT_WITH})(?![\w.-])")
#: What may have one of these words in it and is none of them.
_QUOTED: Final = re.compile(r'"[^"]*"')
_ACCOUNTED: Final = re.compile(r"^(\t+)jump account_([\w-]+)\n", re.MULTILINE)
_ROUND: Final = re.compile(r"^\tchain ((?:known|told)_[\w-]+) \{$", re.MULTILINE)
#: Where a policy file's own rules begin: with what accounts for them.
_BEGIN: Final = re.compile(r"^# accounting\.nft: ", re.MULTILINE)


def turned(policy: str, additions: str) -> str:
    """A policy that refuses nothing, of one that does, with the text that it has besides.

    Raises AssertionError when it is not sure of every statement.
    """
    chains = set(_ROUND.findall(additions))
    lines = "".join(map(_turned, policy.splitlines(keepends=True)))
    accounted = _ACCOUNTED.sub(lambda found: _surrounded(found, chains), lines)
    if not additions:
        return accounted
    begin = _BEGIN.search(accounted)
    if begin is None:
        raise AssertionError("the policy file must say where its rules are accounted for")
    return f"{accounted[: begin.start()]}{additions}\n{accounted[begin.start() :]}"


def refusals(policy: str) -> tuple[str, ...]:
    """The lines that refuse, without their indentation."""
    return tuple(line.strip() for line in policy.splitlines() if _REFUSAL.search(_bare(line)))


def _bare(line: str) -> str:
    """A line without what may hold any word."""
    if _COMMENT.match(line):
        return ""
    bare = _QUOTED.sub('""', line)
    if "#" in bare:
        raise AssertionError(f"a comment must have its own line: {line.strip()}")
    return bare


def _turned(line: str) -> str:
    if not _REFUSAL.search(_bare(line)):
        return line
    if '"' in line.replace('"lo"', ""):
        raise AssertionError(f"what refuses must not have names in it: {line.strip()}")
    return _REFUSAL.sub("accept", line)


def _surrounded(found: re.Match[str], chains: set[str]) -> str:
    indent, rule = found.groups()
    before = f"{indent}jump known_{rule}\n" if f"known_{rule}" in chains else ""
    after = f"{indent}jump told_{rule}\n" if f"told_{rule}" in chains else ""
    return f"{before}{found[0]}{after}"
