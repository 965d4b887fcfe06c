"""Whose counters they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """One rule of one sandbox; ``epoch`` tells its counters from others that it had before."""

    sandbox: str
    rule: str
    epoch: str
