"""Distinct DNS questions of the flows of one firewall rule, limited in number."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key
    from ocsf_nft.record import DnsQuestion

#: Maximum number of distinct questions of one flow.
MAX_OF_FLOW: Final = 512
#: Maximum size of the questions of all flows of a rule together. The size is that of the names, in
#: characters, and a fixed one for each question: 16,384 names of 64 characters. It also bounds what
#: each commit stores, because a stored incident has all its questions.
_MAX_OF_RULE: Final = 1 << 21
_FIXED: Final = 64


class _OfFlow:
    """Questions of one flow: all of them, and those that no attempt has, in their order."""

    __slots__ = ("known", "unreported")

    def __init__(self) -> None:
        self.known: set[DnsQuestion] = set()
        self.unreported: dict[DnsQuestion, None] = {}


class DnsQuestions:
    """Questions in the log records of a rule's flows, until an attempt has them.

    The kernel logs only some of a flow's packets, so the questions may be incomplete.
    """

    def __init__(self) -> None:
        self._flows: dict[Key, _OfFlow] = {}
        #: Size of all known questions.
        self._size = 0

    def add(self, key: Key, question: DnsQuestion | None) -> bool:
        """Add the question of a record of the flow ``key``.

        Return True if the flow has one more unreported question.
        """
        if question is None:
            return False
        found = self._flows.get(key) or _OfFlow()
        if question in found.unreported:
            return False
        if question not in found.known:
            size = self._size + _size(question)
            if len(found.known) >= MAX_OF_FLOW or size > _MAX_OF_RULE:
                return False
            found.known.add(question)
            self._size = size
            self._flows[key] = found
        found.unreported[question] = None
        return True

    def unreported(self, key: Key) -> tuple[DnsQuestion, ...]:
        """Return the questions of the flow ``key`` that no attempt has."""
        found = self._flows.get(key)
        return () if found is None else tuple(found.unreported)

    def take(self, key: Key, attempt: Attempt) -> tuple[DnsQuestion, ...]:
        """Return and remove the questions of an attempt of the flow ``key``.

        They are not more than the attempt's packets: records may be ahead of the counters.
        """
        found = self._flows.get(key)
        if found is None:
            return attempt.questions
        taken = attempt.questions
        if attempt.record.origin.transport == "counters":
            taken = tuple(islice(found.unreported, attempt.packets))
        for question in taken:
            found.unreported.pop(question, None)
        return taken

    def resume(
        self, key: Key, reported: Iterable[DnsQuestion], unreported: Iterable[DnsQuestion]
    ) -> None:
        """Add the questions of an incident that was open when the service stopped."""
        for question in reported:
            self.add(key, question)
        if found := self._flows.get(key):
            found.unreported.clear()
        for question in unreported:
            self.add(key, question)

    def remove(self, key: Key) -> None:
        """Remove the questions of a flow that is over."""
        if found := self._flows.pop(key, None):
            self._size -= sum(map(_size, found.known))


def _size(question: DnsQuestion) -> int:
    return len(question.name) + _FIXED
