"""A moment of an event as text."""

from __future__ import annotations

import datetime as dt
from typing import Final

_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


def utc_text(milliseconds: object) -> str | None:
    """A moment, in ms since the epoch, as RFC 3339 writes it: ``2026-11-24T23:47:46.123Z``.

    None for what is no whole number, or no moment of the years 1 to 9999.
    """
    if not isinstance(milliseconds, int) or isinstance(milliseconds, bool):
        return None
    try:
        moment = _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
