"""Conversion of an event's time to text."""

from __future__ import annotations

import datetime as dt
from typing import Final

_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


def utc_text(milliseconds: object) -> str | None:
    """Return a time in ms since the epoch as RFC 3339 text: ``2026-11-24T23:47:46.123Z``.

    Return None if the value is no integer, or if the time is not in the years 1 to 9999.
    """
    if not isinstance(milliseconds, int) or isinstance(milliseconds, bool):
        return None
    try:
        time = _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
