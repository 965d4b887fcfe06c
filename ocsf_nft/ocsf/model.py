"""Base class of the OCSF models, the size of their caches, and functions that define fields."""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self, TypeAlias, get_args

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from ocsf_nft.ocsf.enums import OTHER, Captioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Maximum number of results in each cache of objects that many events have, such as endpoints. A
#: program that retries uses only a few destinations, and a scan never repeats a destination and
#: fills any cache. So a larger cache is not faster, but costs memory: an object with its JSON is 1
#: to 2 kB, and caches of 8,192 took 27 MB more in a flood of random destinations.
CACHED: Final = 1024


class Model(BaseModel):
    """Base class of the OCSF objects and events.

    The fields of a model have the names, order and types of the attributes in the JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: Attributes of this object that belong to OCSF profiles, by profile.
    profile_attributes: ClassVar[dict[str, tuple[str, ...]]] = {}

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
        return orjson.Fragment(self.__pydantic_serializer__.to_json(self, exclude_none=True))

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


def _agrees(value: str, info: ValidationInfo) -> str:
    """Check that a field such as ``severity`` has OCSF's caption for the id in ``severity_id``.

    Return ``value``. Raises ValueError if OCSF has another caption. Id 99 (Other) allows any text.
    """
    member = info.data.get(f"{str(info.field_name).removesuffix('_name')}_id")
    if isinstance(member, Captioned) and member != OTHER and value != member.caption:
        raise ValueError(f"the caption of id {int(member)} is {member.caption!r}")
    return value


#: Text for an enum id. The default is the id's own caption.
Caption: TypeAlias = Annotated[str, AfterValidator(_agrees)]

#: OCSF's integer types are signed and hold 64 bits at most.
Long: TypeAlias = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=0xFFFF)]


def caption_of(id_field: str) -> Any:
    """Define a text field whose default value is OCSF's caption for the value of ``id_field``.

    For example, ``severity`` is "High" if ``severity_id`` is 4. If the id is None, the caption is
    None. The field ``id_field`` must be declared before this field.
    """

    def caption(data: dict[str, Any]) -> str | None:
        member: Captioned | None = data[id_field]
        return None if member is None else member.caption

    return Field(default_factory=caption, description=f"the caption of {id_field}")


def optional(description: str) -> Any:
    """Define an optional field of a model; ``description`` states where its value comes from."""
    return Field(default=None, description=description)


def derived_field(compute: Callable[[dict[str, Any]], Any], description: str) -> Any:
    """Define a field with a computed default value.

    ``compute`` gets the values of the fields declared before this field, and returns the default.
    """
    return Field(default_factory=compute, description=description)
