"""Limit of the number of objects that are read from the kernel."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


class Limit:
    """Limit of each list: the owner of a namespace may create millions of objects."""

    def __init__(self, most: int) -> None:
        self._most = most
        #: Whether a list was longer.
        self.is_exceeded = False

    def take(self, found: Iterable[T]) -> list[T]:
        """Return the first objects of a list, at most as many as the limit allows."""
        taken = list(itertools.islice(found, self._most + 1))
        if len(taken) > self._most:
            self.is_exceeded = True
            del taken[self._most :]
        return taken
