"""What a file says of the store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from ocsf_nft.config.base_table import FileName, Table

_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(|[KMGT]i?B|B)")
_AGE: Final = re.compile(r"([0-9]{1,9}) ?([smhd])")
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _size(value: object) -> object:
    """Bytes, as a number or as a text such as 512MiB."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no size: write 512MiB, 10GB or a number of bytes")
    number, unit = found.groups()
    base = 1024 if "i" in unit else 1000
    return int(number) * base ** _POWERS[unit.removesuffix("B").removesuffix("i")]


def _age(value: object) -> object:
    """Seconds, as a number or as a text such as 30d."""
    if not isinstance(value, str):
        return value
    found = _AGE.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no time: write 90s, 15m, 12h, 30d or a number of seconds")
    return int(found[1]) * _SECONDS[found[2]]


Size = Annotated[int, BeforeValidator(_size)]
Seconds = Annotated[float, BeforeValidator(_age)]


class StoreConfig(Table):
    """Where events are kept until each sink has them, and for a while after, ``[store]``.

    It takes at most ``max_bytes`` of the disk, and keeps no event for longer than ``max_age``.
    ``when_full`` of events that a sink still needs, or the disk is: ``wait``, and read no more
    records meanwhile, or ``drop`` the oldest, and say how many the sink will never have.
    """

    path: Annotated[Path, FileName] | None = None
    max_bytes: Annotated[Size, Field(ge=1 << 20, le=1 << 44)] = 1 << 30
    max_age: Annotated[Seconds, Field(ge=60, le=10 * 366 * 86_400)] = 30 * 86_400.0
    when_full: Literal["wait", "drop"] = "wait"
