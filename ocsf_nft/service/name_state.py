"""State of one host name in policies: its present addresses, and the time of its next lookup.

All times are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.values import Address
    from ocsf_nft.service.delivery_answers import FamilyAnswer, NameAnswer

#: Limits of the time between two lookups; without addresses, and after a failure.
_MIN_TTL: Final = 5.0
_MAX_TTL: Final = 3600.0
_MAX_NEGATIVE_TTL: Final = 60.0
_MAX_PAUSE: Final = 30.0
#: Time for which the last addresses stay allowed while lookups fail, after the end of their TTL.
KEEP_SECONDS: Final = 600.0
#: Most addresses of a name that a fence allows.
MAX_ADDRESSES: Final = 32
_VERSIONS: Final = (4, 6)


class _Family:
    """Addresses of a name in one version of IP."""

    def __init__(self, now: float) -> None:
        #: Addresses of the last answer; None before the first one.
        self.addresses: tuple[Address, ...] | None = None
        self.latest: FamilyAnswer | None = None
        self.valid_until = now + KEEP_SECONDS

    def take(self, answer: FamilyAnswer, now: float) -> None:
        self.latest = answer
        if answer.error is None:
            self.addresses = answer.addresses
            self.valid_until = now + min(max(answer.ttl, _MIN_TTL), _MAX_TTL) + KEEP_SECONDS

    def expire(self, now: float) -> None:
        if now >= self.valid_until:
            self.addresses = ()

    @property
    def error(self) -> str | None:
        return None if self.latest is None else self.latest.error


class NameState:
    """State of a host name, by the answers about it."""

    def __init__(self, now: float) -> None:
        """Create the state of a name without an answer."""
        #: Time of the next lookup.
        self.next_at = now
        self._families = {version: _Family(now) for version in _VERSIONS}
        self._backoff = Backoff(max_seconds=_MAX_PAUSE)

    @property
    def is_answered(self) -> bool:
        """Return True if there was an answer, also if it was a failure."""
        return all(each.latest is not None for each in self._families.values())

    def take(self, answer: NameAnswer, now: float) -> None:
        """Take the answer to a lookup.

        After a failure, the last addresses stay until ten minutes after the end of their TTL.
        """
        for version, family in self._families.items():
            family.take(answer.families[version], now)
        self.expire(now)
        answers = list(answer.families.values())
        ttls = [each.ttl for each in answers if each.error is None]
        has_addresses = any(each.addresses for each in answers)
        longest = _MAX_TTL if has_addresses else _MAX_NEGATIVE_TTL
        waits = [min(max(ttl, _MIN_TTL), longest) for ttl in ttls]
        if len(ttls) < len(answers):
            waits.append(self._backoff.wait_seconds(None))
            waits += [
                each.valid_until - now
                for each in self._families.values()
                if each.error is not None and each.valid_until > now
            ]
        else:
            self._backoff = Backoff(max_seconds=_MAX_PAUSE)
        self.next_at = now + min(waits)

    def expire(self, now: float) -> None:
        """Remove the addresses that were not confirmed for too long."""
        for each in self._families.values():
            each.expire(now)

    def addresses(self, known: Iterable[Address] = ()) -> tuple[Address, ...]:
        """Return the addresses that a fence allows now, sorted.

        ``known`` are those of an earlier service, which count until there is an answer.
        """
        found = self._all(tuple(known))
        return tuple(found)[:MAX_ADDRESSES]

    def fault(self, known: Iterable[Address] = ()) -> str | None:
        """Return why the name is not fully resolved; None if it is, or before the first answer."""
        return "; ".join(self._faults(tuple(known))) or None

    def _faults(self, known: tuple[Address, ...]) -> Iterator[str]:
        if not self.is_answered:
            return
        families = self._families.values()
        found = list(self._all(known))
        error = next((each.error for each in families if each.error is not None), None)
        is_stale = any(each.error is not None and each.addresses != () for each in families)
        if error is not None and (is_stale or not found):
            state = "stay allowed for up to ten minutes" if found else "are not allowed any more"
            yield f"{error}: its last addresses {state}"
        elif not found:
            answers = [each.latest for each in families if each.latest is not None]
            is_absent = any(each.is_absent for each in answers)
            yield "there is no such name" if is_absent else "it has no address that can be allowed"
        refused = [text for each in families if each.latest for text in each.latest.refused]
        if refused:
            yield f"addresses that a name must not allow are refused: {', '.join(refused[:3])}"
        if len(found) > MAX_ADDRESSES:
            yield f"only {MAX_ADDRESSES} of its {len(found)} addresses are allowed"

    def _all(self, known: tuple[Address, ...]) -> Iterator[Address]:
        for version, family in self._families.items():
            if family.addresses is None:
                yield from sorted(each for each in known if each.version == version)
            else:
                yield from family.addresses
