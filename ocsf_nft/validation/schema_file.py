"""Compiled OCSF schema in a file, as the OCSF schema server exports it, plain or compressed."""

from __future__ import annotations

import gzip
import re
import zlib
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.validation.fault import describe
from ocsf_nft.validation.schema import Schema

if TYPE_CHECKING:
    from pathlib import Path

#: Maximum size of a schema without compression. That of OCSF 1.8.0 has 4 MB.
MAX_BYTES: Final = 64 << 20
_GZIP: Final = b"\x1f\x8b"
_MAX_SHOWN: Final = 100


class _Part(BaseModel):
    """Base of the parts of a schema. It may have more keys than those that we use."""

    model_config = ConfigDict(strict=True)


class _Deprecation(_Part):
    message: str = ""


class _Deprecable(_Part):
    deprecated: Annotated[_Deprecation | None, Field(alias="@deprecated")] = Field(default=None)


class _Value(_Deprecable):
    caption: str


class _Type(_Part):
    type: str | None = None
    range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    regex: str | None = None
    max_len: int | None = None
    observable: int | None = None


class _Attribute(_Deprecable):
    type: str
    object_type: str | None = None
    requirement: str | None = None
    is_array: bool | None = None
    profile: str | None = None
    profiles: list[str] | None = None
    enum: dict[str, _Value] | None = None
    sibling: str | None = None
    observable: int | None = None


class _Constraints(_Part):
    at_least_one: list[str] = []
    just_one: list[str] = []


class _Object(_Deprecable):
    attributes: dict[str, _Attribute]
    constraints: _Constraints | None = None
    profiles: list[str] | None = None
    observable: int | None = None


class _Class(_Object):
    uid: int


class _Types(_Part):
    attributes: dict[str, _Type]


class _Dictionary(_Part):
    types: _Types


_Version: TypeAlias = Annotated[
    str, Field(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9A-Za-z.-]{1,32})?$")
]


class _Export(_Part):
    version: _Version
    classes: dict[str, _Class]
    objects: dict[str, _Object]
    profiles: dict[str, object] = {}
    #: Exports up to 1.7.0 have the types here, later ones in the dictionary.
    types: dict[str, _Type] | None = None
    dictionary: _Dictionary | None = None


def read_schema(path: Path) -> Schema:
    """Read a compiled OCSF schema from a file: JSON, or JSON compressed by gzip.

    Raises AbsentError if the file can't be read. Raises UsageError if it is too large, or is no
    compiled schema.
    """
    name = quoted(str(path))
    try:
        published = orjson.loads(_content(path, name))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{name} is no JSON, so it is no OCSF schema: {error}") from error
    try:
        export = _Export.model_validate(published)
    except ValidationError as error:
        raise _not_compiled(name, _first_fault(error)) from error
    try:
        found = Schema(export.version, export.model_dump(by_alias=True, exclude_none=True))
        found.build_tables()  # so that no event meets a missing part later
    except KeyError as error:
        raise _not_compiled(name, f"it has no {describe(error.args[0])}") from error
    except (ValueError, re.error, RecursionError, OverflowError) as error:  # the last two: patterns
        raise _not_compiled(name, _shown(str(error))) from error
    return found


def _content(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as plain:
            is_compressed = plain.peek(len(_GZIP)).startswith(_GZIP)
            with gzip.GzipFile(fileobj=plain) if is_compressed else plain as file:
                content = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{name} can't be decompressed: {error}") from error
    except OSError as error:
        raise AbsentError(f"{name} can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{name} has more than {MAX_BYTES >> 20} MiB: give one OCSF schema")
    return content


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"])) or "the file"
    return f"{_shown(where)}: {fault['msg']}"


def _shown(text: str) -> str:
    # The texts of a schema may have any characters.
    return describe(text[:_MAX_SHOWN]).strip('"')


def _not_compiled(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} is no compiled OCSF schema ({why}): give the file that a schema server exports"
    )
