"""Published OCSF schema of one version: classes, objects, and data types with their valid values.

The schemas are the JSON exports of the OCSF schema server, from the package ocsf_json_schema.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.validation.fault import describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
#: Exports of older versions contain patterns that don't compile.
_OLDEST: Final = (1, 1, 0)

Primitive: TypeAlias = Literal["boolean_t", "float_t", "integer_t", "json_t", "long_t", "string_t"]

NOT_FINITE: Final = "is a number that JSON doesn't have"
NOT_64_BITS: Final = "doesn't fit 64 bits"
NOT_UTF8: Final = "is no UTF-8: it holds a broken character"
IS_NULL: Final = "is null; what isn't known is left out"

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_INT64: Final = range(-(1 << 63), 1 << 63)
_NOUNS: Final = {"float_t": "number", "long_t": "integer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """Data type of the OCSF schema, such as ``port_t``: its primitive type and its limits."""

    name: str
    primitive: Primitive
    minimum: int | None = None
    maximum: int | None = None
    max_length: int | None = None
    pattern: re.Pattern[str] | None = None
    observable: int | None = None

    def fault(self, value: Any) -> str | None:
        """Return the reason why a value is not valid for this type; None if it is valid.

        ``value`` must not be null. The reason is a text, for example ``70000 is more than 65535``.
        """
        if self.primitive == "string_t" and isinstance(value, str):
            return self._text_fault(value)
        if self.primitive == "json_t":
            return json_fault(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.primitive in {"integer_t", "long_t"} and is_number:
            return self._integer_fault(value)
        if self.primitive == "float_t" and is_number:
            return json_fault(value)
        if self.primitive == "boolean_t" and isinstance(value, bool):
            return None
        return f"{describe(value)} is no {self._noun}"

    @property
    def _noun(self) -> str:
        noun = _NOUNS.get(self.primitive, self.primitive.removesuffix("_t"))
        return noun if self.name == self.primitive else f"{noun} ({self.name})"

    def _text_fault(self, value: str) -> str | None:
        # Check the length first: the time of some patterns grows with the square of the length.
        if self.max_length is not None and len(value) > self.max_length:
            return f"has {len(value)} characters, more than {self.max_length} ({self.name})"
        if not is_utf8(value):
            return NOT_UTF8
        if self.pattern is not None and self.pattern.search(value) is None:
            return f"{describe(value)} is no {self.name}"
        return None

    def _integer_fault(self, value: Any) -> str | None:
        if isinstance(value, float):
            if not math.isfinite(value):
                return NOT_FINITE
            problem = (
                "an integer written as a fraction" if value.is_integer() else f"no {self._noun}"
            )
            return f"{describe(value)} is {problem}"
        if value not in _INT64:
            return NOT_64_BITS
        if self.maximum is not None and value > self.maximum:
            return f"{value} is more than {self.maximum}"
        if self.minimum is not None and value < self.minimum:
            return f"{value} is less than {self.minimum}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """Definition of an attribute in an OCSF class or object, such as ``port``."""

    name: str
    #: None if its value is an object.
    type: DataType | None
    #: The name of that object.
    object_name: str | None
    is_array: bool
    #: The attribute is allowed only if the event lists one of these profiles; empty: always.
    profiles: frozenset[str]
    #: The captions of its values, if it is an enumeration.
    captions: Mapping[Any, str]
    sibling: str | None
    #: The sentence with the replacement, if deprecated; the same for single values.
    deprecated: str | None
    deprecated_values: Mapping[Any, str]
    #: Values of ``type_id`` that an observable of it may have; empty: any.
    observables: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Definition of an OCSF class or object: its attributes and constraints.

    At least one of the attributes ``at_least_one`` must be present, and exactly one of the
    attributes ``just_one``. An empty tuple means that there is no such constraint.
    """

    name: str
    attributes: Mapping[str, Attribute]
    required: tuple[Attribute, ...]
    recommended: tuple[Attribute, ...]
    at_least_one: tuple[str, ...]
    just_one: tuple[str, ...]
    #: For each caption attribute, present or not, the enumerations that it may describe.
    siblings: Mapping[str, tuple[Attribute, ...]]
    profiles: frozenset[str]
    deprecated: str | None


class Schema:
    """Published OCSF schema of one version, from the JSON export of the OCSF schema server."""

    def __init__(self, version: str, published: Mapping[str, Any]) -> None:
        self.version = version
        self._published = published
        self._class_names = {one["uid"]: name for name, one in published["classes"].items()}
        # Exports up to 1.7.0 have the types at the top level, at most one profile for an attribute,
        # and no list of profiles.
        types = published.get("types") or published["dictionary"]["types"]["attributes"]
        self._types = {name: data_type(name, types) for name in types}
        self._tables: dict[tuple[str, str], Table] = {}
        self.profiles = frozenset(_all_profiles(published))

    @property
    def event_versions(self) -> frozenset[str]:
        """Return the values of ``metadata.version`` that events of this schema may have.

        Events of a development version, such as 1.9.0-dev, may also have that of its release.
        """
        return frozenset({self.version, self.version.partition("-")[0]})

    def build_tables(self) -> None:
        """Build the definitions of all classes and objects, which are else built when needed.

        Raises KeyError if they refer to a missing part. Raises ValueError or re.error for a key of
        an enumeration that is no number, or a wrong pattern.
        """
        for kind in ("classes", "objects"):
            for name in self._published[kind]:
                self._table(kind, name)

    def class_of(self, uid: int) -> Table | None:
        """Return the definition of the class with this ``class_uid``; None if there is none."""
        name = self._class_names.get(uid)
        return None if name is None else self._table("classes", name)

    def object_of(self, name: str) -> Table:
        """Return the definition of the object with this name, such as ``network_endpoint``.

        Raises KeyError if the schema has no such object.
        """
        return self._table("objects", name)

    def _table(self, kind: str, name: str) -> Table:
        table = self._tables.get((kind, name))
        if table is None:
            table = self._tables[kind, name] = self._build_table(name, self._published[kind][name])
        return table

    def _build_table(self, name: str, one: Mapping[str, Any]) -> Table:
        published = one["attributes"]
        attributes = {key: self._attribute(key, each) for key, each in published.items()}

        def with_requirement(requirement: str) -> tuple[Attribute, ...]:
            return tuple(
                each
                for key, each in attributes.items()
                if published[key].get("requirement") == requirement
            )

        siblings: dict[str, tuple[Attribute, ...]] = {}
        for each in attributes.values():
            if each.sibling is not None:
                siblings[each.sibling] = (*siblings.get(each.sibling, ()), each)
        constraints = one.get("constraints") or {}
        return Table(
            name=name,
            attributes=attributes,
            required=with_requirement("required"),
            recommended=tuple(
                each for each in with_requirement("recommended") if each.deprecated is None
            ),
            at_least_one=tuple(constraints.get("at_least_one", ())),
            just_one=tuple(constraints.get("just_one", ())),
            siblings=siblings,
            profiles=frozenset(one.get("profiles") or ()),
            deprecated=_deprecation(one),
        )

    def _attribute(self, name: str, one: Mapping[str, Any]) -> Attribute:
        is_object = one["type"] == "object_t"
        type_ = None if is_object else self._types[one["type"]]
        value_of = str if type_ is None or type_.primitive == "string_t" else int
        enum = {value_of(value): each for value, each in (one.get("enum") or {}).items()}
        object_schema = self._published["objects"][one["object_type"]] if is_object else {}
        observables: tuple[int | None, ...] = (
            one.get("observable"),
            object_schema.get("observable"),
            None if type_ is None else type_.observable,
        )
        return Attribute(
            name=name,
            type=type_,
            object_name=one["object_type"] if is_object else None,
            is_array=bool(one.get("is_array")),
            profiles=frozenset(_profiles(one)),
            captions={value: each["caption"] for value, each in enum.items()},
            sibling=one.get("sibling"),
            deprecated=_deprecation(one),
            deprecated_values={
                value: sentence
                for value, each in enum.items()
                if (sentence := _deprecation(each)) is not None
            },
            observables=frozenset(uid for uid in observables if uid is not None),
        )


def data_type(name: str, published: Mapping[str, Any]) -> DataType:
    """Build the data type ``name`` from ``published``, the schema's map of all data types."""
    own = published[name]
    base = published.get(own.get("type"), own)
    minimum, maximum = own.get("range") or base.get("range") or (None, None)
    regex = own.get("regex") or base.get("regex")
    return DataType(
        name=name,
        primitive=cast("Primitive", own.get("type", name)),
        minimum=minimum,
        maximum=maximum,
        max_length=own.get("max_len") or base.get("max_len"),
        # ASCII, because the patterns are not meant to match digits of other scripts.
        pattern=None if regex is None else re.compile(regex, re.ASCII),
        observable=own.get("observable"),
    )


def json_fault(value: Any) -> str | None:
    """Return the reason why ``value`` is not valid in JSON; None if ``value`` is valid.

    NaN and integers of more than 64 bits are not valid. ``value`` must not be an object or an
    array.
    """
    if isinstance(value, str):
        return None if is_utf8(value) else NOT_UTF8
    if isinstance(value, float):
        return None if math.isfinite(value) else NOT_FINITE
    if isinstance(value, int):
        # JSON readers may not accept more than 64 bits.
        return None if value in _INT64 else NOT_64_BITS
    return None if value is None else f"{describe(value)} is nothing that JSON has"


def is_utf8(text: str) -> bool:
    """Return True if a text can be encoded as UTF-8."""
    return text.isascii() or _SURROGATE.search(text) is None


def versions() -> tuple[str, ...]:
    """Return all OCSF versions that events can be validated against, oldest first.

    Raises UnsupportedError if the extra ``ocsf-nft[validate]`` is not installed.
    """
    found = {
        tuple(map(int, match.groups()))
        for name in _package().get_packaged_versions()
        if (match := _RELEASE.fullmatch(name))
    }
    return tuple(".".join(map(str, one)) for one in sorted(found) if one >= _OLDEST)


def full_version(version: str) -> str:
    """Return an OCSF version with all three numbers: ``1.1.0`` for both ``1.1`` and ``1.1.0``.

    Raises UsageError if the full version is not one of :func:`versions`.
    """
    known = versions()
    for full in (version, f"{version}.0"):
        if full in known:
            return full
    raise UsageError(
        f"{quoted(version)} is no version of OCSF that is known here: {', '.join(known)}"
    )


@cache
def load(version: str) -> Schema:
    """Return the OCSF schema of ``version``, one of :func:`versions`; the results are cached."""
    return Schema(version, _package().get_ocsf_schema(version))


def _package() -> ModuleType:
    try:
        import ocsf_json_schema  # noqa: PLC0415 - an extra, imported when events are validated
    except ImportError as error:
        raise UnsupportedError(
            "events can't be validated without the published schema: "
            "pip install 'ocsf-nft[validate]'"
        ) from error
    package: ModuleType = ocsf_json_schema
    return package


def _profiles(attribute: Mapping[str, Any]) -> Iterable[str]:
    if name := attribute.get("profile"):
        return (name,)
    return attribute.get("profiles") or ()


def _all_profiles(published: Mapping[str, Any]) -> Iterable[str]:
    yield from published.get("profiles", ())
    for kind in ("classes", "objects"):
        for one in published[kind].values():
            yield from one.get("profiles") or ()


def _deprecation(one: Mapping[str, Any]) -> str | None:
    if "@deprecated" not in one:
        return None
    message = one["@deprecated"].get("message", "")
    return re.sub(r"<[^>]*>", "", message).strip()
