"""Paths of attributes in queries: their fields in our models, and their values in events."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.model import children

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.ocsf.model import Model, ModelField


def fields(path: str) -> list[ModelField]:
    """Return the fields of our classes at a path; none if no class has it."""
    return [field for model in CLASSES.values() for field in _below(model, path.split("."))]


def _below(model: type[Model], steps: list[str]) -> Iterator[ModelField]:
    name, *rest = steps
    field = model.model_fields.get(name)
    if field is None:
        return
    if not rest:
        yield field
    elif name in children(model):
        yield from _below(children(model)[name], rest)
    elif name == "unmapped" and len(rest) == 1 and _is_described(rest[0], field):
        yield field


def _is_described(name: str, unmapped: ModelField) -> bool:
    """Return whether the description of ``unmapped`` names an attribute."""
    return re.search(rf"\b{name}\b", unmapped.description or "") is not None


def values(events: Iterable[dict[str, Any]], path: str) -> set[Any]:
    """Return the values of events at a path."""
    return {value for event in events for value in _held(event, path.split("."))}


def _held(found: Any, steps: list[str]) -> Iterator[Any]:
    if isinstance(found, list):
        for each in found:
            yield from _held(each, steps)
    elif not steps:
        yield found
    elif isinstance(found, dict) and steps[0] in found:
        yield from _held(found[steps[0]], steps[1:])
