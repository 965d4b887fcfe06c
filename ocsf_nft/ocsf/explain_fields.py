"""Explanation of an OCSF event: its fields, their values, and where each value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.model import children
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.model import Model

#: Maximum nesting depth; a deeper object is shown as one value.
_DEPTH: Final = 16
#: Source of a value without a description: the same in every event of the class.
_CONSTANT: Final = "always so"
_NOT_OURS: Final = "not known to ocsf-nft"


class Field(NamedTuple):
    """One value of an OCSF event: its path, the value as text, and where the value comes from."""

    path: str
    value: str
    source: str


def fields(event: Mapping[str, Any]) -> Iterator[Field]:
    """Yield each value of an OCSF event (decoded JSON) with an explanation; never raises.

    A field that ocsf-nft never fills has the explanation "not known to ocsf-nft".
    """
    uid = event.get("class_uid")
    model = CLASSES.get(uid) if isinstance(uid, int) else None
    yield from _below(event, model, "", _NOT_OURS, 0)


def _below(
    values: Mapping[str, Any], model: type[Model] | None, path: str, source: str, depth: int
) -> Iterator[Field]:
    kinds = {} if model is None else children(model)
    for name, value in values.items():
        known = None if model is None else model.model_fields.get(name)
        description = source
        if known is not None:
            description = known.description or _CONSTANT
        elif model is not None:
            description = _NOT_OURS
        yield from _value(value, kinds.get(name), f"{path}{visible(str(name))}", description, depth)


def _value(
    value: Any, model: type[Model] | None, path: str, source: str, depth: int
) -> Iterator[Field]:
    if isinstance(value, Mapping) and value and depth < _DEPTH:
        yield from _below(value, model, f"{path}.", source, depth + 1)
    elif isinstance(value, list) and value and depth < _DEPTH:
        for number, each in enumerate(value):
            yield from _value(each, model, f"{path}[{number}]", source, depth + 1)
    else:
        yield Field(path, _text(value), source)


def _text(value: Any) -> str:
    if isinstance(value, list | Mapping) and value:
        return f"{len(value)} values, nested too deep to be shown"
    return visible(value if isinstance(value, str) else str(value))
