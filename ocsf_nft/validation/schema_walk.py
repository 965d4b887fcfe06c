"""Check of each attribute of an event against the OCSF schema.

The modules ``validate_event`` and ``observables`` check whether attributes agree with each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.datatype import IS_NULL, NOT_UTF8, is_utf8, json_fault
from ocsf_nft.validation.fault import EVENT, child_path, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.validation.fault import FaultList
    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: The id that means "see the caption", and the schema's caption for it if it has this meaning.
_OTHER: Final = 99
_OTHER_CAPTION: Final = "Other"
#: Maximum depth of objects and arrays: JSON readers have a limit, and no event needs more.
DEPTH: Final = 100
TOO_DEEP: Final = f"is nested more than {DEPTH} levels deep"


class Walk:
    """Check of one event, attribute by attribute; the faults are added to ``fault_list``.

    An event lists profiles in its ``metadata.profiles``. After the check, ``used`` has the listed
    profiles that define an attribute of the event.
    """

    __slots__ = ("_fault_list", "_listed", "_recommended", "_schema", "used")

    def __init__(
        self, schema: Schema, listed: frozenset[str], fault_list: FaultList, *, recommended: bool
    ) -> None:
        """Prepare the check of one event; :meth:`visit` starts it.

        ``listed`` are the profiles in the event's ``metadata.profiles``. If ``recommended`` is
        true, each missing recommended attribute gives a warning.
        """
        self._schema = schema
        self._listed = listed
        self._fault_list = fault_list
        self._recommended = recommended
        self.used: set[str] = set()

    def visit(self, table: Table, value: Mapping[str, Any], path: str, depth: int = 1) -> None:
        """Check ``value`` (the event or an object in the event) and all objects inside ``value``.

        ``table`` is the object's definition in the schema, ``path`` its path in the event.
        ``depth`` is the nesting level, 1 for the event. Raises TooManyError after too many faults.
        """
        if depth > DEPTH:
            self._fault_list.error(path, TOO_DEEP)
            return
        if not table.attributes:
            self._check_undefined(value, path, depth)
            return
        for key, inner in value.items():
            attribute = table.attributes.get(key)
            where = child_path(path, key)
            if attribute is None:
                self._fault_list.error(
                    where, f"is no attribute of {table.name} in {self._schema.version}"
                )
            elif self._check_presence(attribute, where, inner):
                self._check_attribute(attribute, inner, where, depth)
        self._check_requirements(table, value, path)
        self._check_captions(table, value, path)

    def _check_presence(self, attribute: Attribute, where: str, value: Any) -> bool:
        """Report an attribute that is null or deprecated, or whose profile the event doesn't list.

        The reported faults have the path ``where``. Return False if ``value`` is null, because null
        can't be checked further. Otherwise, return True.
        """
        # Only these profiles define the attribute, so the event must list one of them.
        if attribute.profiles:
            self.used.update(self._listed & attribute.profiles)
            if self._listed.isdisjoint(attribute.profiles):
                profiles = " or ".join(sorted(attribute.profiles))
                self._fault_list.error(
                    where, f"its profile ({profiles}) isn't in metadata.profiles"
                )
        if attribute.deprecated is not None:
            self._fault_list.warning(where, f"is deprecated: {attribute.deprecated}")
        if value is None:
            self._fault_list.error(where, IS_NULL)
            return False
        return True

    def _check_attribute(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if not attribute.is_array:
            self._check_value(attribute, value, where, depth)
        elif not isinstance(value, list):
            self._fault_list.error(where, f"{describe(value)} is no array")
        else:
            for number, item in enumerate(value):
                at = f"{where}[{number}]"
                if item is None:
                    self._fault_list.error(at, IS_NULL)
                else:
                    self._check_value(attribute, item, at, depth)

    def _check_value(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if attribute.type is None:
            self._check_object(attribute.object_name or "", value, where, depth)
        elif attribute.type.primitive == "json_t" and isinstance(value, dict | list):
            self._check_undefined(value, where, depth)
        elif (fault := attribute.type.fault(value)) is not None:
            self._fault_list.error(where, fault)
        elif attribute.captions:
            self._check_enumerated(attribute, value, where)

    def _check_object(self, name: str, value: Any, where: str, depth: int) -> None:
        if not isinstance(value, dict):
            self._fault_list.error(where, f"{describe(value)} is no object ({name})")
            return
        table = self._schema.object_of(name)
        if table.deprecated is not None:
            self._fault_list.warning(where, f"object {name} is deprecated: {table.deprecated}")
        self.visit(table, value, where, depth + 1)

    def _check_enumerated(self, attribute: Attribute, value: Any, where: str) -> None:
        if value not in attribute.captions:
            only = [describe(one) for one in attribute.captions]
            what = f"not {only[0]}" if len(only) == 1 else f"no value of {attribute.name}"
            self._fault_list.error(where, f"{describe(value)} is {what}")
        elif (sentence := attribute.deprecated_values.get(value)) is not None:
            self._fault_list.warning(
                where, f"the value {describe(value)} is deprecated: {sentence}"
            )

    def _check_requirements(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for attribute in self._missing(table.required, value):
            self._fault_list.error(child_path(path, attribute.name), "is required and missing")
        if self._recommended:
            for attribute in self._missing(table.recommended, value):
                self._fault_list.warning(
                    child_path(path, attribute.name), "is recommended and missing"
                )
        one_of, just_one = table.at_least_one, table.just_one
        if one_of and not any(_has_value(value, name) for name in one_of):
            self._fault_list.error(path or EVENT, f"has none of {', '.join(one_of)}")
        if just_one:
            found = [name for name in just_one if _has_value(value, name)]
            if len(found) != 1:
                what = f"{' and '.join(found)}, of which" if found else "none of"
                of = "only one may be there" if found else ", ".join(just_one)
                self._fault_list.error(path or EVENT, f"has {what} {of}")

    def _missing(
        self, attributes: tuple[Attribute, ...], value: Mapping[str, Any]
    ) -> Iterator[Attribute]:
        for attribute in attributes:
            if attribute.name not in value and not (
                attribute.profiles and self._listed.isdisjoint(attribute.profiles)
            ):
                yield attribute

    def _check_captions(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for sibling, attributes in table.siblings.items():
            present = [each for each in attributes if each.name in value]
            where = child_path(path, sibling)
            for each in present:
                ids, captions = value[each.name], value.get(sibling)
                if not each.is_array:
                    self._check_caption(each, ids, captions, where)
                elif isinstance(ids, list) and isinstance(captions, list):
                    for number, one in enumerate(ids):
                        of_it = captions[number] if number < len(captions) else None
                        self._check_caption(each, one, of_it, f"{where}[{number}]")
            if not present and sibling in value:
                names = " or ".join(each.name for each in attributes)
                self._fault_list.warning(where, f"is there without {names}")

    def _check_caption(self, attribute: Attribute, number: Any, caption: Any, where: str) -> None:
        captions = attribute.captions
        is_id = isinstance(number, int | str) and not isinstance(number, bool)
        if not is_id or number not in captions:
            return  # reported already, or not an enumeration
        published, of = captions[number], f"{attribute.name} {number}"
        is_other = number == _OTHER and published == _OTHER_CAPTION
        if caption is None or caption == "":
            if is_other:
                self._fault_list.error(where, f"is missing: {of} requires a text")
            else:
                self._fault_list.warning(where, f"is missing: {of} is {describe(published)}")
        elif not isinstance(caption, str):
            return  # reported already
        elif is_other:
            if caption != published and caption in captions.values():
                self._fault_list.warning(where, f"{of} has the caption of another id")
        elif caption != published:
            self._fault_list.error(
                where, f"is {describe(caption)}, but {of} is {describe(published)}"
            )

    def _check_undefined(self, value: Any, path: str, depth: int) -> None:
        """Check an object or array whose content the schema doesn't define.

        Only two things are checked: the depth, and that names and values are valid in JSON. A null
        value gives a warning. ``depth`` is the level of nesting.
        """
        if depth > DEPTH:
            self._fault_list.error(path, TOO_DEEP)
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                self._check_undefined(inner, _inner_path(value, path, key), depth + 1)
            elif inner is None:
                self._fault_list.warning(_inner_path(value, path, key), IS_NULL)
            elif (fault := json_fault(inner)) is not None:
                self._fault_list.error(_inner_path(value, path, key), fault)
            if isinstance(key, str) and not is_utf8(key):
                self._fault_list.error(_inner_path(value, path, key), f"its name {NOT_UTF8}")


def _has_value(value: Any, name: str) -> bool:
    for step in name.split("."):  # an inner attribute is a path such as actor.user
        value = value.get(step) if isinstance(value, dict) else None
    return value is not None


def _inner_path(value: Any, path: str, key: Any) -> str:
    return child_path(path, key) if isinstance(value, dict) else f"{path}[{key}]"
