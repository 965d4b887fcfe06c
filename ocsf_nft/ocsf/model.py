"""Base class of the OCSF models, the size of their caches, and functions that define fields.

The models are classes of our own, because pydantic takes longer to import than a short command
needs in all. They check their values like strict models of pydantic.
"""

from __future__ import annotations

from functools import cache, cached_property
from inspect import get_annotations
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import orjson

from ocsf_nft.ocsf.enums import OTHER, Captioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Maximum number of results in each cache of objects that many events have, such as endpoints. A
#: program that retries uses only a few destinations, and a scan never repeats a destination and
#: fills any cache. So a larger cache is not faster, but costs memory: an object with its JSON is 1
#: to 2 kB, and caches of 8,192 took 27 MB more in a flood of random destinations.
CACHED: Final = 1024

_REQUIRED: Final = object()
_UNIONS: Final = frozenset({Union, UnionType})


class Limits(NamedTuple):
    """Limits of an integer field, in its annotation."""

    lowest: int
    highest: int


class Rule(NamedTuple):
    """Rule for a given value of a field, in its annotation."""

    #: Is called with the field's name, its value, and the values of the fields declared before.
    #: Raises ValueError if the value breaks the rule.
    check: Callable[[str, Any, Mapping[str, Any]], None]


class ModelField:
    """Field of a model: its type, its description and its default value."""

    __slots__ = (
        "_annotation", "_model", "_name", "compute", "default", "description", "is_valid", "rules",
    )  # fmt: skip

    def __init__(
        self,
        description: str | None = None,
        *,
        default: Any = _REQUIRED,
        compute: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.description = description
        self.default = default
        #: Returns the default from the values of the fields declared before.
        self.compute = compute
        #: Return True for a value of the field's type. Made when the field is first used.
        self.is_valid: Callable[[Any], bool] | None = None
        self.rules: tuple[Rule, ...] = ()

    def declare(self, model: type, name: str, annotation: Any) -> None:
        """Add the model, the name and the type of the field."""
        self._model, self._name, self._annotation = model, name, annotation

    @property
    def annotation(self) -> Any:
        """Return the type of the field's values."""
        if isinstance(self._annotation, str):  # of a module with postponed annotations
            self._annotation = get_type_hints(self._model, include_extras=True)[self._name]
        return self._annotation

    def check(self, name: str, value: Any, before: Mapping[str, Any]) -> None:
        """Raise ValueError if the field, which is called ``name``, can't have ``value``.

        ``before`` has the values of the fields declared before.
        """
        if self.is_valid is None:
            self.rules = tuple(_rules(self.annotation))
            self.is_valid = _type_check(self.annotation)
        if not self.is_valid(value):
            raise ValueError(f"{name} can't be {value!r:.200}: its type is {self.annotation}")
        if value is not None:
            for rule in self.rules:
                rule.check(name, value, before)


def required(description: str) -> Any:
    """Define a field that must be given; ``description`` states where its value comes from."""
    return ModelField(description)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(required,))
class _ModelClass(type):
    """Class of the models. It collects the fields of a model from its annotations."""

    model_fields: dict[str, ModelField]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        fields: dict[str, ModelField] = {}
        for base in bases:
            fields |= getattr(base, "model_fields", {})
        for each, annotation in get_annotations(cls).items():
            if _is_class_variable(annotation):
                continue
            field = namespace.get(each, _REQUIRED)
            if isinstance(field, ModelField):
                delattr(cls, each)  # the values are attributes of the objects
            else:
                field = ModelField(default=field)
            field.declare(cls, each, annotation)
            fields[each] = field
        cls.model_fields = fields


def _is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith("ClassVar")
    return ClassVar in {annotation, get_origin(annotation)}


class Model(metaclass=_ModelClass):
    """Base class of the OCSF objects and events.

    The fields of a model have the names, order and types of the attributes in the JSON. A model
    is created from the values of its fields as keyword arguments, and can't be changed. Its class
    raises ValueError for a value of another type, for an unknown field, and for a missing one.
    """

    #: Fields by name.
    model_fields: ClassVar[dict[str, ModelField]] = {}
    #: Attributes of this object that belong to OCSF profiles, by profile.
    profile_attributes: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, **values: Any) -> None:
        values = self._prepared(values)
        found = self.__dict__
        for name, field in self.model_fields.items():
            if name in values:
                found[name] = value = values[name]
                field.check(name, value, found)
            elif field.compute is not None:
                found[name] = field.compute(found)
            elif field.default is not _REQUIRED:
                found[name] = field.default
            else:
                raise ValueError(f"{type(self).__name__} needs {name}")
        if not values.keys() <= found.keys():
            unknown = ", ".join(values.keys() - found.keys())
            raise ValueError(f"{type(self).__name__} has no {unknown}")
        self._check()

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values for the fields from those that are given."""
        return values

    def _check(self) -> None:
        """Raise ValueError if the values of several fields contradict each other."""

    def __setattr__(self, name: str, value: object) -> None:
        """Raise AttributeError."""
        raise AttributeError(f"{type(self).__name__} is frozen: {name} can't be changed")

    def __eq__(self, other: object) -> bool:
        """Return True if ``other`` is of the same class, with the same values."""
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        """Return a hash of the values; raises TypeError if one is a mapping."""
        return hash(self._values())

    def __repr__(self) -> str:
        """Return the class and the values."""
        pairs = zip(self.model_fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(map(self.__dict__.__getitem__, self.model_fields))

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return a copy with other values for some fields, which are not checked."""
        copy = object.__new__(type(self))
        copy.__dict__.update(zip(self.model_fields, self._values(), strict=True))
        copy.__dict__.update(update)
        return copy

    @classmethod
    def profiles_of(cls, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield the names of the OCSF profiles that an object uses, such as ``host``.

        ``values`` are the object's attributes by name. A profile may be yielded more than once.
        """
        # An object uses a profile if it has a value for an attribute of the profile, such as
        # ``device``. It also uses the profiles of the objects inside it.
        for profile, names in cls.profile_attributes.items():
            if any(values.get(name) is not None for name in names):
                yield profile
        for name, kind in _carriers(cls):
            value = values.get(name)
            for each in value if isinstance(value, tuple | list) else (value,):
                if each is not None:
                    inner = each.__dict__ if isinstance(each, Model) else each
                    yield from kind.profiles_of(inner)

    @cached_property
    def _cached_json(self) -> orjson.Fragment:
        return self._as_json()

    def _as_json(self) -> orjson.Fragment:
        # A copy, because orjson leaves at least 4 kB allocated for its result.
        return orjson.Fragment(bytes(memoryview(self.json())))

    def json(self) -> bytes:
        """Return the object as encoded JSON without null values."""
        values = zip(self.model_fields, self._values(), strict=True)
        known = {name: value for name, value in values if value is not None}
        return orjson.dumps(known, default=Model.fragment)

    def cache_json(self) -> Self:
        """Store the object's JSON for later calls of :meth:`fragment`; return the object."""
        _ = self._cached_json
        return self

    def fragment(self) -> orjson.Fragment:
        """Return the object as encoded JSON without null values, to insert in an event."""
        return self.__dict__.get("_cached_json") or self._as_json()


@cache
def children(model: type[Model]) -> Mapping[str, type[Model]]:
    """Return the classes of the OCSF objects in a model's fields, by the names of the fields."""
    return {
        name: kind
        for name, field in model.model_fields.items()
        for kind in _kinds(field.annotation)
    }


def _kinds(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


@cache
def _carriers(model: type[Model]) -> tuple[tuple[str, type[Model]], ...]:
    """Return the fields of a model with objects that may use OCSF profiles, and their classes."""
    return tuple(
        (name, kind)
        for name, kind in children(model).items()
        if kind.profile_attributes or _carriers(kind)
    )


def _type_check(annotation: Any) -> Callable[[Any], bool]:
    """Return the function that returns True for the values of a type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return lambda _: True
    if annotation is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    if origin is None:
        return lambda value: isinstance(value, annotation)
    if origin is Literal:
        kind = type(inner[0])
        return lambda value: type(value) is kind and value in inner
    if origin is Annotated:
        return _limited(_type_check(inner[0]), [each for each in inner if isinstance(each, Limits)])
    if origin in _UNIONS:
        checks = tuple(map(_type_check, inner))
        return lambda value: any(check(value) for check in checks)
    if origin is tuple:  # of any length
        check = _type_check(inner[0])
        return lambda value: isinstance(value, tuple) and all(map(check, value))
    return lambda value: isinstance(value, origin)


def _limited(check: Callable[[Any], bool], limits: list[Limits]) -> Callable[[Any], bool]:
    if not limits:
        return check
    ((lowest, highest),) = limits
    return lambda value: check(value) and lowest <= value <= highest


def _rules(annotation: Any) -> Iterator[Rule]:
    for inner in get_args(annotation):
        if isinstance(inner, Rule):
            yield inner
        yield from _rules(inner)


def _agrees(name: str, value: str, before: Mapping[str, Any]) -> None:
    """Check that a field such as ``severity`` has OCSF's caption for the id in ``severity_id``.

    Raises ValueError if OCSF has another caption. Id 99 (Other) allows any text.
    """
    member = before.get(f"{name.removesuffix('_name')}_id")
    if isinstance(member, Captioned) and member != OTHER and value != member.caption:
        raise ValueError(f"the caption of id {int(member)} is {member.caption!r}")


#: Text for an enum id. The default is the id's own caption.
Caption: TypeAlias = Annotated[str, Rule(_agrees)]

#: OCSF's integer types are signed and hold 64 bits at most.
Long: TypeAlias = Annotated[int, Limits(-(1 << 63), (1 << 63) - 1)]
Port: TypeAlias = Annotated[int, Limits(0, 0xFFFF)]


def caption_of(id_field: str) -> Any:
    """Define a text field whose default value is OCSF's caption for the value of ``id_field``.

    For example, ``severity`` is "High" if ``severity_id`` is 4. If the id is None, the caption is
    None. The field ``id_field`` must be declared before this field.
    """

    def caption(data: dict[str, Any]) -> str | None:
        member: Captioned | None = data[id_field]
        return None if member is None else member.caption

    return ModelField(f"the caption of {id_field}", compute=caption)


def optional(description: str) -> Any:
    """Define an optional field of a model; ``description`` states where its value comes from."""
    return ModelField(description, default=None)


def constant(value: Any, description: str) -> Any:
    """Define a field that always has ``value``."""
    return ModelField(description, default=value)


def derived_field(compute: Callable[[dict[str, Any]], Any], description: str) -> Any:
    """Define a field with a computed default value.

    ``compute`` gets the values of the fields declared before this field, and returns the default.
    """
    return ModelField(description, compute=compute)
