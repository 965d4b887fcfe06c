"""A small set of events that represents many, where only the shape of their objects matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Key = TypeVar("Key")
_OBSERVED = ("observables", "name")


def of_each_shape(events: Mapping[Key, Any]) -> dict[Key, Any]:
    """Return a few of the events: with each set of attributes, and each id, of their objects.

    A schema constrains each object independently: the other events only combine the same objects.
    """
    seen: set[Any] = set()
    chosen = {}
    for name, event in events.items():
        found = set(_shapes(event, (event["class_uid"],)))
        if not found <= seen:
            chosen[name] = event
        seen |= found
    return chosen


def _shapes(value: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _shapes(each, path)
    elif not isinstance(value, dict):
        is_listed = path[-1].endswith("_id") or path[-1] == "profiles"
        yield path, type(value), value if is_listed or path[1:] == _OBSERVED else None
    else:
        yield path, frozenset(value)
        for key, each in value.items():
            if key != "unmapped":
                yield from _shapes(each, (*path, key))
