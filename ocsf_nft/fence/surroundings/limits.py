"""Limit of the number of objects that are read from the kernel."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


class Limit:
    """Limit of all lists of a kind together: a namespace's owner may create millions of objects."""

    def __init__(self, most: int) -> None:
        self._left = most
        #: Whether there are more objects than the limit, or some that can't be read.
        self.is_exceeded = False

    def take(self, found: Iterable[T]) -> list[T]:
        """Return the first objects of a list, at most as many as the limit still allows.

        Pass the kernel's replies, not only those that matter: the others need time too.
        """
        if self.is_exceeded:
            return []
        taken = list(itertools.islice(found, self._left + 1))
        if len(taken) > self._left:
            self.is_exceeded = True
            del taken[self._left :]
        self._left -= len(taken)
        return taken
