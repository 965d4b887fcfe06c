"""How it is known who did it, as OCSF's enrichment of an event, and in words."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.actors import name_of
from ocsf_nft.ocsf.cache_sizes import CACHED
from ocsf_nft.ocsf.objects import Enrichment
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution, Seen

#: The attribute that it is about, also where the event has none: that nobody knows the process
#: is said of the process.
NAME: Final = "actor.process"
TYPE: Final = "attribution"
_PROVIDER: Final = "ocsf-nft"
_UNKNOWN: Final = "unknown"


def enrichments_of(attribution: Attribution | None) -> tuple[Enrichment, ...] | None:
    """What an event has of it; None where nobody has looked."""
    if attribution is None:
        return None
    if attribution.names_nobody:
        return _of_nobody(attribution)
    return (_enrichment(attribution),)


@lru_cache(maxsize=CACHED)
def _of_nobody(attribution: Attribution) -> tuple[Enrichment, ...]:
    return (_enrichment(attribution).keep_json(),)


def _enrichment(attribution: Attribution) -> Enrichment:
    process = attribution.process
    data: dict[str, Any] = {"method": attribution.method}
    if attribution.confidence is not None:
        data["confidence"] = attribution.confidence.capitalize()
    data["reason"] = visible(attribution.reason)
    if attribution.seen or attribution.unnamed:
        data["processes"] = [_told(each) for each in attribution.seen]
        data["unnamed"] = attribution.unnamed
    return Enrichment(
        name=NAME,
        value=_UNKNOWN if process is None else str(process.pid),
        type=TYPE,
        provider=_PROVIDER,
        data=data,
    )


def _told(seen: Seen) -> dict[str, Any]:
    process = seen.process
    facts = {
        "pid": process.pid,
        "name": name_of(process),
        "path": None if process.path is None else visible(process.path),
        "cmd_line": None if process.cmd_line is None else visible(process.cmd_line),
        "calls": seen.calls,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def others_than_the_one(attribution: Attribution) -> int:
    """How many processes it was beside the one that the event names."""
    one = attribution.process
    named = sum(one is None or each.process.pid != one.pid for each in attribution.seen)
    return named + attribution.unnamed


def in_words(number: int, *, was_each: bool) -> str:
    """So many processes; unless each of them was seen to try, one or more of them."""
    processes = f"{number} processes"
    return processes if was_each else f"one or more of {processes}"
