"""Decoding of other firewalls' log prefixes, such as ``[UFW BLOCK]``, to sandbox, rule and verdict.

A log prefix is the text at the start of a log record. The configuration can add prefixes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.record import PREFIX_ROOT, Prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.record import ForeignVerdict, Record

#: The kernel's limit (NF_LOG_PREFIXLEN in include/uapi/linux/netfilter/nf_log.h, less the NUL).
PREFIX_BYTES: Final = 127
#: Maximum length of a prefix as text: a byte that is not UTF-8 is shown as four characters.
PREFIX_CHARACTERS: Final = 4 * PREFIX_BYTES
#: Prefixes in the cache; a host has as many as it has log rules.
_CACHED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """Row that the configuration adds to the table of log prefixes.

    The row applies to all prefixes that begin with the literal text ``begins``. If ``rule`` is
    None, the whole prefix is the name of the rule.
    """

    begins: str
    verdict: ForeignVerdict
    sandbox: str | None = None
    rule: str | None = None


#: ufw (backend_iptables.py). BLOCK is a drop or a reject, by a rule or a policy; the prefix lacks
#: this detail. Here and below, such a packet counts as rejected. LIMIT BLOCK is a reject. LIMIT is
#: logged before the limit is checked, AUDIT before any rule.
_UFW: Final[dict[str, ForeignVerdict]] = {
    "UFW BLOCK": "reject",
    "UFW LIMIT BLOCK": "reject",
    "UFW ALLOW": "accept",
    "UFW LIMIT": "log",
    "UFW AUDIT": "log",
    "UFW AUDIT INVALID": "log",
}
_WHOLE: Final = {f"[{name}]": Prefix(None, name, verdict) for name, verdict in _UFW.items()} | {
    # Calico's action Log, which has no verdict.
    "calico-packet:": Prefix(None, "calico-packet", "log"),
}
#: OpenShell's prefix, which has the sandbox's name in it.
_OPENSHELL: Final = re.compile(r"openshell:bypass:([A-Za-z0-9._-]{1,64}):", re.ASCII)
#: Forms with a free name (a zone, a policy, a chain), which may be any word, and a verdict at a
#: fixed position: firewalld's chains, of either backend; OpenWrt's fw4 and fw3; Shorewall's.
_FORMS: Final = (
    (
        "firewalld",
        re.compile(r"(?:filter_|IN_|OUT_|FWD_|FWDI_|FWDO_)[^\s:]+_(REJECT|DROP|ICMP_BLOCK):"),
    ),
    (
        "OpenWrt",
        re.compile(r"(?i:(reject|drop|accept)) \S+ (?:in|out|forward|invalid ct state):"),
    ),
    ("Shorewall", re.compile(r"Shorewall6?:[^\s:]+:(?:[0-9]+:)?([A-Za-z_]+):[^\s:]*")),
)
#: Firewalls by a word in their own prefixes, or in the usual prefixes of rules for them.
_FIREWALLS: Final = {
    "ufw": "ufw",
    "firewalld": "firewalld",
    "shorewall": "Shorewall",
    "shorewall6": "Shorewall",
    "calico": "Calico",
    "openshell": "OpenShell",
    "docker": "Docker",
    "fwknop": "fwknop",
    "sfw2": "SuSEfirewall2",
    "iptables": "iptables",
    "ip6tables": "iptables",
}
#: Words for verdicts in prefixes.
_ACCEPTED: Final = frozenset({"accept", "accepted", "allow", "allowed", "pass"})
_REJECTED: Final = frozenset({"reject", "rejected"})
_DROPPED: Final = frozenset({"drop", "dropped"})
_REFUSED: Final = _REJECTED | _DROPPED | {"deny", "denied", "block", "blocked"}
_WORD: Final = re.compile(r"[^\W_]+")


class Prefixes:
    """Table that decodes the log prefixes of other firewalls.

    Configured rows are tried before built-in rows. Among the configured rows, the row with the
    longest ``begins`` is tried first. Raises UsageError if two configured rows have the same
    ``begins``.
    """

    def __init__(self, configured: Sequence[Configured] = ()) -> None:
        self._configured = sorted(configured, key=lambda row: len(row.begins), reverse=True)
        seen: set[str] = set()
        for row in configured:
            if row.begins in seen:
                raise UsageError(f"two prefixes begin with {quoted(row.begins)}: leave one out")
            seen.add(row.begins)
        self._cached_find = lru_cache(maxsize=_CACHED)(self._find)

    def of(self, prefix: str) -> Prefix | None:
        """Return the sandbox, rule and verdict that a log prefix of another firewall stands for.

        Return None if the prefix is unknown, too long, or a prefix of ocsf-nft.
        """
        return self._cached_find(prefix) if len(prefix) <= PREFIX_CHARACTERS else None

    def named(self, record: Record) -> Record:
        """Return a log record with the sandbox, rule and verdict that its log prefix stands for.

        If the prefix is unknown, only the verdict is set, to ``log``. A record of an ocsf-nft fence
        already has these values, and is returned unchanged.
        """
        if record.sandbox is not None:
            return record
        meaning = self.of(record.prefix)
        if meaning is None:
            return replace(record, verdict="log")
        return replace(record, sandbox=meaning.sandbox, rule=meaning.rule, verdict=meaning.verdict)

    def _find(self, prefix: str) -> Prefix | None:
        if prefix.startswith(PREFIX_ROOT):
            return None
        for row in self._configured:
            if prefix.startswith(row.begins):
                return Prefix(row.sandbox, row.rule or prefix.strip(), row.verdict)
        return _built_in(prefix.strip())


@lru_cache(maxsize=_CACHED)
def firewall_of(prefix: str) -> str | None:
    """Return the name of the firewall that writes such a log prefix, for example ``ufw``.

    Return None if the prefix does not show it.
    """
    text = prefix.strip()
    for name, form in _FORMS:
        if form.fullmatch(text):
            return name
    words = (word.lower() for word in _WORD.findall(text[:PREFIX_CHARACTERS]))
    return next((_FIREWALLS[word] for word in words if word in _FIREWALLS), None)


def begins(text: str) -> str:
    """Return ``text`` unchanged if the configuration may use it as the beginning of log prefixes.

    Raises UsageError otherwise, for example if ``text`` is empty or begins with ``ocsf-nft:``.
    """
    if not text or len(text.encode()) > PREFIX_BYTES:
        raise UsageError(f"{quoted(text)} is no log prefix: it must have 1 to {PREFIX_BYTES} bytes")
    if "\0" in text:
        raise UsageError(f"{quoted(text)} is no log prefix: it has a NUL character")
    if text.startswith(PREFIX_ROOT):
        raise UsageError(
            f"{quoted(text)} is a prefix of ocsf-nft, which has a fixed meaning: leave it out"
        )
    return text


def _built_in(text: str) -> Prefix | None:
    if text in _WHOLE:
        return _WHOLE[text]
    if found := _OPENSHELL.fullmatch(text):
        return Prefix(found[1], "bypass", "reject")
    rule = text.rstrip(": ")
    for _, form in _FORMS:
        if found := form.fullmatch(text):
            return Prefix(None, rule, _verdict_in(found[1]) or "log")
    verdict = _verdict_in(text)
    return None if verdict is None else Prefix(None, rule, verdict)


def _verdict_in(text: str) -> ForeignVerdict | None:
    """Return the verdict that a log prefix contains as a word; None if it contains no such word.

    For example, the word "DROP" means ``drop``. If the words contradict each other, return ``log``
    (unknown verdict).
    """
    words = {word.lower() for word in _WORD.findall(text) if word.isascii()}
    if words & _REFUSED:
        if words & _ACCEPTED:
            return "log"
        return "reject" if words & _REJECTED or not words & _DROPPED else "drop"
    return "accept" if words & _ACCEPTED else None
