"""Parameters of a request's query."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.control.event_log import EventRequest
from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.event_filter import event_filter
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from aiohttp import web

_OF_EVENTS: Final = (
    "sandbox", "class", "severity", "since", "until", "uid", "last", "after", "follow",
)  # fmt: skip
_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
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


def event_query(request: web.Request) -> EventRequest:
    """Return the events that a request asks for; raises UsageError if a parameter is wrong."""
    given = parameters(request, *_OF_EVENTS)
    last, after, follow = given.get("last"), given.get("after"), given.get("follow", "0")
    if last is not None and _NUMBER.fullmatch(last) is None:
        raise UsageError(f"last {quoted(last[:_MOST_CHARACTERS])} is no number of events")
    if last is not None and after is not None:
        raise UsageError("last and after can't be combined: give one of them")
    if follow not in _FOLLOW:
        raise UsageError(f"follow {quoted(follow[:_MOST_CHARACTERS])} is unknown: give 0 or 1")
    classes = given["class"].split(",") if "class" in given else ()
    select = event_filter(given, classes)
    return EventRequest(select, _FOLLOW[follow], None if last is None else int(last), after)
