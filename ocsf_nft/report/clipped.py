"""Texts of a report: short, and without invisible characters, whatever an event contains."""

from __future__ import annotations

from typing import Any, Final

from ocsf_nft.ocsf import json_values
from ocsf_nft.ocsf.safe_text import visible

#: Usual maximum number of characters.
_MOST: Final = 200


def clipped(value: Any, most: int = _MOST) -> str:
    """Return at most ``most`` characters of a string, with its length if that is more.

    Invisible characters are escaped. Every other value becomes an empty text.
    """
    text = json_values.text(value)
    shown = visible(text[:most])  # cut first: the rest may be long
    return shown if len(text) <= most else f"{shown}… ({len(text):,} characters)"
