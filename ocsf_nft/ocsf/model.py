"""What every OCSF model here has in common: immutable, closed, and derived where it can be."""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias, get_args

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from ocsf_nft.ocsf.enums import OTHER, Captioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Model(BaseModel):
    """An OCSF object. Its fields are named, ordered and typed as it is serialised."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: OCSF's profiles that bring attributes to this object, and which.
    brought_by: ClassVar[dict[str, tuple[str, ...]]] = {}

    @classmethod
    def profiles_of(cls, values: Mapping[str, Any]) -> Iterator[str]:
        """The profiles that attributes of such an object are of, and those of what it holds.

        ``values`` are its attributes, and what they hold objects of ours, or JSON's.
        """
        for profile, names in cls.brought_by.items():
            if any(values.get(name) is not None for name in names):
                yield profile
        for name, kind in _carriers(cls):
            value = values.get(name)
            for each in value if isinstance(value, tuple | list) else (value,):
                if each is not None:
                    inner = each.__dict__ if isinstance(each, Model) else each
                    yield from kind.profiles_of(inner)

    @cached_property
    def _kept_json(self) -> orjson.Fragment:
        return self._as_json()

    def _as_json(self) -> orjson.Fragment:
        return orjson.Fragment(self.__pydantic_serializer__.to_json(self, exclude_none=True))

    def keep_json(self) -> Self:
        """Keep the object's JSON with it from now on: for an object that is in many events."""
        _ = self._kept_json
        return self

    def fragment(self) -> orjson.Fragment:
        """The object as JSON, without nulls."""
        return self.__dict__.get("_kept_json") or self._as_json()


@cache
def children(model: type[Model]) -> Mapping[str, type[Model]]:
    """The fields of a model that hold objects, and of which kind."""
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
    """The fields whose objects, or what those hold, can have an attribute of a profile."""
    return tuple(
        (name, kind) for name, kind in children(model).items() if kind.brought_by or _carriers(kind)
    )


def _agrees(value: str, info: ValidationInfo) -> str:
    """Refuse a caption that is not its id's; any text will do when the id is 99, Other."""
    member = info.data.get(f"{str(info.field_name).removesuffix('_name')}_id")
    if isinstance(member, Captioned) and member != OTHER and value != member.caption:
        raise ValueError(f"the caption of id {int(member)} is {member.caption!r}")
    return value


#: The text beside an enum id. Left out, it is the id's own caption.
Caption: TypeAlias = Annotated[str, AfterValidator(_agrees)]

#: OCSF's integer types are signed and hold 64 bits at most.
Long: TypeAlias = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=0xFFFF)]


def caption_of(id_field: str) -> Any:
    """Default of a caption: what the schema calls the id in ``id_field``, declared before it."""

    def caption(data: dict[str, Any]) -> str | None:
        member: Captioned | None = data[id_field]
        return None if member is None else member.caption

    return Field(default_factory=caption, description=f"the caption of {id_field}")


def known(description: str) -> Any:
    """A field that may not be known, and where its value is from."""
    return Field(default=None, description=description)


def derived(compute: Callable[[dict[str, Any]], Any], description: str) -> Any:
    """Default of a field that follows from the fields declared before it."""
    return Field(default_factory=compute, description=description)
