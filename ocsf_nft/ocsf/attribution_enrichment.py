"""OCSF enrichment of an event: the sending process, and the attribution method that found it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.actors import name_of
from ocsf_nft.ocsf.cache_sizes import CACHED
from ocsf_nft.ocsf.objects import Enrichment
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution, Seen

#: The attribute that the enrichment is about, also if the event lacks it: then the enrichment
#: states that the process is unknown.
NAME: Final = "actor.process"
TYPE: Final = "attribution"
_PROVIDER: Final = "ocsf-nft"
_UNKNOWN: Final = "unknown"


def enrichments_of(attribution: Attribution | None) -> tuple[Enrichment, ...] | None:
    """Convert an attribution to the value of the event's attribute ``enrichments``.

    An attribution states which process sent the event's packets. The result is a tuple with one
    OCSF enrichment, or None if ``attribution`` is None.
    """
    if attribution is None:
        return None
    if attribution.names_no_process:
        return _without_process(attribution)
    return (_enrichment(attribution),)


@lru_cache(maxsize=CACHED)
def _without_process(attribution: Attribution) -> tuple[Enrichment, ...]:
    return (_enrichment(attribution).cache_json(),)


def _enrichment(attribution: Attribution) -> Enrichment:
    process = attribution.process
    data: dict[str, Any] = {"method": attribution.method}
    if attribution.confidence is not None:
        data["confidence"] = attribution.confidence.capitalize()
    data["reason"] = visible(attribution.reason)
    if attribution.seen or attribution.unnamed:
        data["processes"] = [_process_json(each) for each in attribution.seen]
        data["unnamed"] = attribution.unnamed
    return Enrichment(
        name=NAME,
        value=_UNKNOWN if process is None else str(process.pid),
        type=TYPE,
        provider=_PROVIDER,
        data=data,
    )


def _process_json(seen: Seen) -> dict[str, Any]:
    process = seen.process
    facts = {
        "pid": process.pid,
        "name": name_of(process),
        "path": None if process.path is None else visible(process.path),
        "cmd_line": None if process.cmd_line is None else visible(process.cmd_line),
        "calls": seen.calls,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def count_others(attribution: Attribution) -> int:
    """Return the number of possible senders other than ``attribution.process``."""
    one = attribution.process
    named = sum(one is None or each.process.pid != one.pid for each in attribution.seen)
    return named + attribution.unnamed


def count_text(number: int, *, was_each: bool) -> str:
    """Return the text for a number of processes that sent packets, for example "3 processes".

    If ``was_each`` is false, perhaps only some of these processes sent packets. The text is then,
    for example, "one or more of 3 processes".
    """
    processes = f"{number} processes"
    return processes if was_each else f"one or more of {processes}"
