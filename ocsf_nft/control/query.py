"""Parameters of a request's query."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.event_filter import EventFilter, severity_id
from ocsf_nft.quoted import quoted
from ocsf_nft.time_text import since_ms

if TYPE_CHECKING:
    from aiohttp import web

_OF_EVENTS: Final = ("sandbox", "severity", "since", "follow")
_FOLLOW: Final = {"0": False, "1": True}
#: Maximum number of characters of a name in an error's sentence.
_MOST_CHARACTERS: Final = 100


def parameters(request: web.Request, *known: str) -> dict[str, str]:
    """Return the parameters of a request; raise UsageError if one is not known or is repeated."""
    for name in request.query:
        if name not in known:
            shown = quoted(name[:_MOST_CHARACTERS])
            near = difflib.get_close_matches(name[:_MOST_CHARACTERS], known, n=1, cutoff=0.0)
            remedy = f"did you mean {near[0]}?" if near else "this path has none"
            raise UsageError(f"there is no parameter {shown}: {remedy}")
        if len(request.query.getall(name)) > 1:
            raise UsageError(f"the parameter {name} is repeated: give it once")
    return dict(request.query)


def event_query(request: web.Request) -> tuple[EventFilter, bool]:
    """Return the filter of a request for events, and whether it also requests new events.

    Raises UsageError if a parameter is wrong.
    """
    given = parameters(request, *_OF_EVENTS)
    severity, since = given.get("severity"), given.get("since")
    follow = given.get("follow", "0")
    if follow not in _FOLLOW:
        raise UsageError(f"follow {quoted(follow[:_MOST_CHARACTERS])} is unknown: give 0 or 1")
    selected = EventFilter(
        sandbox=given.get("sandbox"),
        min_severity=None if severity is None else severity_id("severity", severity),
        from_ms=None if since is None else since_ms("since", since),
    )
    return selected, _FOLLOW[follow]
