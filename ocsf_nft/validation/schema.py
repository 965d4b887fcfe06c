"""Published OCSF schema of one version, as tables of classes and objects for validation.

The schemas are the JSON exports of the OCSF schema server, from the package ocsf_json_schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.validation import datatype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from ocsf_nft.validation.datatype import DataType

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
#: Exports of older versions contain patterns that don't compile.
_OLDEST: Final = (1, 1, 0)


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
        self._types = {name: datatype.from_schema(name, types) for name in types}
        self._tables: dict[tuple[str, str], Table] = {}
        self.profiles = frozenset(_all_profiles(published))

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
