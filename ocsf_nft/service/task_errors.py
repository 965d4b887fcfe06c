"""Tasks that run at the same time, and the first of their errors."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

T = TypeVar("T")


async def run_all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all works at the same time; return their results, in the order of ``works``.

    Raises an ExceptionGroup if one fails; the others are cancelled then.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in works]
    return [task.result() for task in tasks]


async def run_each(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run all works at the same time, each to its end.

    Raises a BaseExceptionGroup of their errors after that.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    errors = [each for each in results if isinstance(each, BaseException)]
    if errors:
        raise BaseExceptionGroup("some works have failed", errors)


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error in place of an exception group that the ``with`` block raises.

    If any error of the group is not an OcsfNftError, the group is raised unchanged.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(OcsfNftError)
        if ours is None or others is not None:
            raise
        raise first_of(ours) from None


def first_of(error: BaseException) -> BaseException:
    """Return the first error of an exception group, or ``error`` itself if it is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
