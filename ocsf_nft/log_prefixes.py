"""What the log prefixes of other firewalls mean: whose sandbox, which rule, which verdict.

A prefix is whatever its author chose, so this is a table of what the usual firewalls write, to
which a configuration adds. What it doesn't know it doesn't guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UsageError
from ocsf_nft.record import PREFIX_ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.record import ForeignVerdict, Record

#: The kernel's limit (NF_LOG_PREFIXLEN in include/uapi/linux/netfilter/nf_log.h, less the NUL).
PREFIX_BYTES: Final = 127
#: A prefix as text has at most so many characters: a byte that is not UTF-8 is shown by four.
PREFIX_CHARACTERS: Final = 4 * PREFIX_BYTES
#: Prefixes whose meaning is remembered; a host has as many as it has log rules.
_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a prefix says. ``sandbox`` is None where it names none."""

    sandbox: str | None
    rule: str
    verdict: ForeignVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """A row that a configuration adds: of each prefix that ``begins`` so, taken literally.

    Without a ``rule`` of its own it has the prefix's text.
    """

    begins: str
    verdict: ForeignVerdict
    sandbox: str | None = None
    rule: str | None = None


#: ufw (backend_iptables.py). A block is a drop or a reject, by a rule or a policy that the prefix
#: doesn't tell; here as below, what is only known to be refused is told as rejected. That of a
#: limit is a reject. A limit logs before it is looked at, an audit before any rule.
_UFW: Final[dict[str, ForeignVerdict]] = {
    "UFW BLOCK": "reject",
    "UFW LIMIT BLOCK": "reject",
    "UFW ALLOW": "accept",
    "UFW LIMIT": "log",
    "UFW AUDIT": "log",
    "UFW AUDIT INVALID": "log",
}
_WHOLE: Final = {f"[{name}]": Meaning(None, name, verdict) for name, verdict in _UFW.items()} | {
    # Calico's action Log, which decides nothing.
    "calico-packet:": Meaning(None, "calico-packet", "log"),
}
#: OpenShell's: the sandbox's name is part of it.
_OPENSHELL: Final = re.compile(r"openshell:bypass:([A-Za-z0-9._-]{1,64}):", re.ASCII)
#: Forms with a free name in them (a zone, a policy, a chain), which may be any word, and a verdict
#: in its place: firewalld's chains, of either backend; OpenWrt's fw4 and fw3; Shorewall's.
_FORMS: Final = (
    re.compile(r"(?:filter_|IN_|OUT_|FWD_|FWDI_|FWDO_)[^\s:]+_(REJECT|DROP|ICMP_BLOCK):"),
    re.compile(r"(?i:(reject|drop|accept)) \S+ (?:in|out|forward|invalid ct state):"),
    re.compile(r"Shorewall6?:[^\s:]+:(?:[0-9]+:)?([A-Za-z_]+):[^\s:]*"),
)
#: The words for it that people use.
_ACCEPTED: Final = frozenset({"accept", "accepted", "allow", "allowed", "pass"})
_REJECTED: Final = frozenset({"reject", "rejected"})
_DROPPED: Final = frozenset({"drop", "dropped"})
_REFUSED: Final = _REJECTED | _DROPPED | {"deny", "denied", "block", "blocked"}
_WORD: Final = re.compile(r"[^\W_]+")


class Prefixes:
    """The table: what is built in, and what a configuration adds, which comes first.

    Of several configured rows the one that begins with more counts. Raises UsageError when two
    begin the same.
    """

    def __init__(self, configured: Sequence[Configured] = ()) -> None:
        self._configured = sorted(configured, key=lambda row: len(row.begins), reverse=True)
        seen: set[str] = set()
        for row in configured:
            if row.begins in seen:
                raise UsageError(f"two prefixes begin with {row.begins!r}: leave one out")
            seen.add(row.begins)
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._find)

    def of(self, prefix: str) -> Meaning | None:
        """What a prefix means; None for one that nobody knows, and for what begins like ours."""
        return self._remembered(prefix) if len(prefix) <= PREFIX_CHARACTERS else None

    def named(self, record: Record) -> Record:
        """The record with what its prefix means; as it was, if it is one of ours.

        One that nobody knows was logged, and that is all there is to tell.
        """
        if record.sandbox is not None:
            return record
        meaning = self.of(record.prefix)
        if meaning is None:
            return replace(record, verdict="log")
        return replace(record, sandbox=meaning.sandbox, rule=meaning.rule, verdict=meaning.verdict)

    def _find(self, prefix: str) -> Meaning | None:
        if prefix.startswith(PREFIX_ROOT):
            return None
        for row in self._configured:
            if prefix.startswith(row.begins):
                return Meaning(row.sandbox, row.rule or prefix.strip(), row.verdict)
        return _built_in(prefix.strip())


def begins(text: str) -> str:
    """How a configured prefix begins; raises UsageError when no foreign prefix can."""
    if not text or len(text.encode()) > PREFIX_BYTES:
        raise UsageError(f"{text!r} is no log prefix: one has 1 to {PREFIX_BYTES} bytes")
    if "\0" in text:
        raise UsageError(f"{text!r} is no log prefix: none holds a NUL character")
    if text.startswith(PREFIX_ROOT):
        raise UsageError(f"{text!r} is a prefix of our own, whose meaning is fixed: leave it out")
    return text


def _built_in(text: str) -> Meaning | None:
    if text in _WHOLE:
        return _WHOLE[text]
    if found := _OPENSHELL.fullmatch(text):
        return Meaning(found[1], "bypass", "reject")
    rule = text.rstrip(": ")
    for form in _FORMS:
        if found := form.fullmatch(text):
            return Meaning(None, rule, _said(found[1]) or "log")
    verdict = _said(text)
    return None if verdict is None else Meaning(None, rule, verdict)


def _said(text: str) -> ForeignVerdict | None:
    """The verdict that the words of a text say; None when they say none."""
    words = {word.lower() for word in _WORD.findall(text) if word.isascii()}
    if words & _REFUSED:
        if words & _ACCEPTED:
            return "log"
        return "reject" if words & _REJECTED or not words & _DROPPED else "drop"
    return "accept" if words & _ACCEPTED else None
