"""Conversion of a time that a person writes: a date with a time, or an age such as ``12h``."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Final

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


def time_us(name: str, text: str, alternative: str = "") -> int:
    """Convert a time (ISO 8601, local by default) to µs since the epoch.

    ``name`` is that of the option, and ``alternative`` another form that it accepts, for the
    error's text. Raises UsageError if ``text`` is no time.
    """
    try:
        time_utc = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{name} {quoted(text)} is no time: write it like 2026-11-24T15:05:55+01:00"
            f"{alternative}"
        ) from error
    return (time_utc - _EPOCH) // dt.timedelta(microseconds=1)


def since_ms(name: str, text: str) -> int:
    """Convert a time, or an age such as ``12h`` (12 hours ago), to ms since the epoch.

    Raises UsageError if ``text`` is neither.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return int((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1000)
    return time_us(name, text, ", or 12h") // 1000
