"""Removal of a packet's payload from the text of its record: it may contain secrets."""

from __future__ import annotations

from typing import Final

#: Last field of a line: the number of the packet's captured bytes that the line lacks.
OMITTED: Final = " omitted="


def without_payload(line: str, omitted: int) -> tuple[str, int]:
    """Return a line (``line.py``) without the last bytes of its packet, and the whole line's size.

    ``omitted`` is the number of bytes to leave out. The returned line states it. The line may lack
    some of them already.
    """
    whole, field, already = line.rpartition(OMITTED)
    if not field or not already.isdecimal():
        whole, already = line, "0"
    size = len(whole) + 2 * int(already)
    if omitted <= int(already):
        return line, size
    return f"{whole[: size - 2 * omitted]}{OMITTED}{omitted}", size
