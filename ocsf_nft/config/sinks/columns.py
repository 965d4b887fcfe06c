"""Parquet columns of each OCSF event class, derived from the models of the events.

All events of a class in one OCSF version have the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from ocsf_nft.delivery.parquet_columns import Column, ListOf, Scalar, Struct
from ocsf_nft.ocsf.events import CLASSES, NetworkActivity
from ocsf_nft.ocsf.finding_objects import Evidences, RelatedEvent
from ocsf_nft.ocsf.model import Limits, Model, ModelField
from ocsf_nft.ocsf.objects import Process
from ocsf_nft.ocsf.versions import SINCE, UNTIL, is_before

_UNIONS: Final = frozenset({Union, UnionType})
#: Columns of OCSF's ``integer_t`` have 32 bits, and columns of ``long_t`` have 64 bits.
_INT32_MAX: Final = (1 << 31) - 1
#: Nesting depth of objects with columns. Deeper objects are JSON, so a model may contain itself.
_DEPTH: Final = 8
#: long_t in OCSF. The models compute the value and give no maximum.
_LONG: Final = frozenset({"type_uid"})
#: Attributes that only older versions have; :mod:`ocsf_nft.ocsf.versions` adds them.
_ONLY_BEFORE: Final[Mapping[type[Model], Mapping[str, tuple[str, Column]]]] = {
    Process: {"lineage": ("1.4.0", ListOf(Scalar.TEXT)), "tid": ("1.6.0", Scalar.INT32)},
    RelatedEvent: {"type": ("1.3.0", Scalar.TEXT)},
}
_AI_AGENT: Final = Struct(
    {
        **dict.fromkeys(("name", "uid", "version", "instance_uid"), Scalar.TEXT),
        "ai_model": Struct({"name": Scalar.TEXT, "ai_provider": Scalar.TEXT}),
    }
)
#: The same for attributes that only newer versions than the stored one have.
_ONLY_SINCE: Final[Mapping[type[Model], Mapping[str, tuple[str, Column]]]] = {
    NetworkActivity: {
        "initiator_id": ("1.9.0", Scalar.INT32),
        "initiator": ("1.9.0", Scalar.TEXT),
        "ai_agent": ("1.9.0", _AI_AGENT),
    },
    Evidences: {"ai_agent": ("1.9.0", _AI_AGENT)},
}


def columns(version: str) -> dict[int, Struct]:
    """Return a map from ``class_uid`` to the Parquet columns of that class in an OCSF version."""
    return {uid: Struct(_columns(model, version, _DEPTH)) for uid, model in CLASSES.items()}


def _columns(model: type[Model], version: str, depth: int) -> dict[str, Column]:
    since, until = SINCE.get(model, {}), UNTIL.get(model, {})
    found = {
        name: _column(name, field, version, depth)
        for name, field in model.model_fields.items()
        if (name not in since or not is_before(version, since[name]))
        and (name not in until or is_before(version, until[name]))
    }
    for name, (later, column) in _ONLY_BEFORE.get(model, {}).items():
        if is_before(version, later):
            found[name] = column
    for name, (first, column) in _ONLY_SINCE.get(model, {}).items():
        if not is_before(version, first):
            found[name] = column
    return found


def _column(name: str, field: ModelField, version: str, depth: int) -> Column:
    if name in _LONG:
        return Scalar.INT64
    return _of_type(field.annotation, (), version, depth)


def _of_type(annotation: Any, limits: Sequence[Any], version: str, depth: int) -> Column:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        known = [each for each in inner if each is not NoneType]
        return _of_type(known[0], limits, version, depth) if len(known) == 1 else Scalar.JSON
    if origin is Annotated:
        return _of_type(inner[0], inner[1:], version, depth)
    if origin is tuple:
        return ListOf(_of_type(inner[0], (), version, depth))
    if origin is Literal:
        return _scalar(type(inner[0]), limits)
    if isinstance(annotation, type) and issubclass(annotation, Model):
        columns = _columns(annotation, version, depth - 1) if depth else {}
        # Parquet has no group without fields.
        return Struct(columns) if columns else Scalar.JSON
    return _scalar(annotation, limits)


def _scalar(kind: Any, limits: Sequence[Any]) -> Scalar:
    if not isinstance(kind, type):
        return Scalar.JSON
    if issubclass(kind, str):
        return Scalar.TEXT
    if issubclass(kind, bool):
        return Scalar.FLAG
    if issubclass(kind, int):
        is_long = any(isinstance(each, Limits) and each.highest > _INT32_MAX for each in limits)
        return Scalar.INT64 if is_long else Scalar.INT32
    return Scalar.JSON
