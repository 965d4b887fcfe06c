"""Configuration of the store of events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from ocsf_nft.config.base_table import FileName, Table
from ocsf_nft.quoted import quoted

_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(|[KMGT]i?B|B)")
_AGE: Final = re.compile(r"([0-9]{1,9}) ?([smhd])")
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _size(value: object) -> object:
    """Convert a text such as ``512MiB`` to a number of bytes; return any other type unchanged."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(f"{quoted(value)} is no size: write 512MiB, 10GB or a number of bytes")
    number, unit = found.groups()
    base = 1024 if "i" in unit else 1000
    return int(number) * base ** _POWERS[unit.removesuffix("B").removesuffix("i")]


def _age(value: object) -> object:
    """Convert a text such as ``30d`` to a number of seconds; return any other type unchanged."""
    if not isinstance(value, str):
        return value
    found = _AGE.fullmatch(value)
    if found is None:
        raise ValueError(
            f"{quoted(value)} is no time: write 90s, 15m, 12h, 30d or a number of seconds"
        )
    return int(found[1]) * _SECONDS[found[2]]


_SizeText = Annotated[str, Field(pattern=f"^{_SIZE.pattern}$")]
_AgeText = Annotated[str, Field(pattern=f"^{_AGE.pattern}$")]
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | _SizeText)]
Seconds = Annotated[float, BeforeValidator(_age, json_schema_input_type=float | _AgeText)]


class StoreConfig(Table):
    """Store of the events and of the packet counts on the disk, table ``[store]`` in the file.

    Events use at most ``max_bytes``. An eighth of that is for dead letters: events that a sink
    refused. Packet counts are stored in addition. To make room, the store deletes the oldest events
    that every sink has acknowledged, and the oldest dead letters. An event that is older than
    ``max_age`` is deleted even if a sink still needs it.

    The checkpoints of the sinks and the dead letters are in a file beside ``path``. It has the same
    name with ``.delivery-1`` at the end.

    ``when_full`` applies if the disk is full, or the store is full of events that a sink has not
    acknowledged. With ``wait``, `ocsf-nft run` reads no more log records until there is room.
    With ``drop``, `ocsf-nft run` drops the oldest events, and reports how many events each sink
    will never get.
    """

    path: Annotated[Path, FileName] | None = None
    """File of the store; by default state-1.sqlite3 in state_dir."""
    max_bytes: Annotated[Size, Field(ge=1 << 20, le=1 << 44)] = 1 << 30
    """Maximum size of the events: a number of bytes, or text such as 512MiB."""
    max_age: Annotated[Seconds, Field(ge=60, le=10 * 366 * 86_400)] = 30 * 86_400.0
    """Maximum age of an event: a number of seconds, or text such as 30d."""
    when_full: Literal["wait", "drop"] = "wait"
    """Read no more records, or remove the oldest events."""
