"""Conversion of an event's time to text."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import Final

_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


def utc_text(milliseconds: object) -> str | None:
    """Return a time in ms since the epoch as RFC 3339 text: ``2026-11-24T23:47:46.123Z``.

    Return None if the value is no integer, or if the time is not in the years 1 to 9999.
    """
    if not isinstance(milliseconds, int) or isinstance(milliseconds, bool):
        return None
    seconds, rest = divmod(milliseconds, 1000)
    whole = _seconds_text(seconds)
    return None if whole is None else f"{whole}.{rest:03d}Z"


# Most events of a batch are of the same few seconds.
@lru_cache(maxsize=64)
def _seconds_text(seconds: int) -> str | None:
    try:
        time = _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None
    return time.isoformat(timespec="seconds").removesuffix("+00:00")
