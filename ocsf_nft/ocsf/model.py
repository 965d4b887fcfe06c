"""What every OCSF model here has in common: immutable, closed, and derived where it can be."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from ocsf_nft.ocsf.enums import OTHER, Captioned

if TYPE_CHECKING:
    from collections.abc import Callable


class Model(BaseModel):
    """An OCSF object. Its fields are named, ordered and typed as it is serialised."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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

    return Field(default_factory=caption)


def derived(compute: Callable[[dict[str, Any]], Any]) -> Any:
    """Default of a field that follows from the fields declared before it."""
    return Field(default_factory=compute)
