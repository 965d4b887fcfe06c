"""One walk through an event, beside the schema's tables: what each attribute says on its own.

What several attributes say together (the class, the times, the observables) is judged by the
modules ``judge`` and ``observables``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.datatype import IS_NULL, NOT_UTF8, is_text, unwritable
from ocsf_nft.validation.fault import EVENT, below, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.validation.fault import Findings
    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: The id that says "see the caption", and how the schema captions it where it means that.
_OTHER: Final = 99
_OTHER_CAPTION: Final = "Other"
#: Levels of objects and arrays; JSON readers stop at some depth, and no event needs this one.
DEPTH: Final = 100
TOO_DEEP: Final = f"is nested more than {DEPTH} levels deep"


class Walk:
    """Walks one event, and knows afterwards which of its profiles brought something."""

    __slots__ = ("_findings", "_listed", "_recommended", "_schema", "used")

    def __init__(
        self, schema: Schema, listed: frozenset[str], findings: Findings, *, recommended: bool
    ) -> None:
        """``listed`` are the event's profiles; ``recommended``: warn of what the schema advises."""
        self._schema = schema
        self._listed = listed
        self._findings = findings
        self._recommended = recommended
        self.used: set[str] = set()

    def visit(self, table: Table, value: Mapping[str, Any], path: str, depth: int = 1) -> None:
        """Judge the object at ``path``; raises TooManyError."""
        if depth > DEPTH:
            self._findings.error(path, TOO_DEEP)
            return
        if not table.attributes:
            self._free(value, path, depth)
            return
        for key, inner in value.items():
            attribute = table.attributes.get(key)
            where = below(path, key)
            if attribute is None:
                self._findings.error(
                    where, f"is no attribute of {table.name} in {self._schema.version}"
                )
            elif self._is_there(attribute, where, inner):
                self._attribute(attribute, inner, where, depth)
        self._requirements(table, value, path)
        self._captions(table, value, path)

    def _is_there(self, attribute: Attribute, where: str, value: Any) -> bool:
        """Judge that an attribute is there at all; tells whether it holds anything."""
        if attribute.profiles:
            self.used.update(self._listed & attribute.profiles)
            if self._listed.isdisjoint(attribute.profiles):
                profiles = " or ".join(sorted(attribute.profiles))
                self._findings.error(where, f"its profile ({profiles}) isn't in metadata.profiles")
        if attribute.deprecated is not None:
            self._findings.warning(where, f"is deprecated: {attribute.deprecated}")
        if value is None:
            self._findings.error(where, IS_NULL)
            return False
        return True

    def _attribute(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if not attribute.is_array:
            self._value(attribute, value, where, depth)
        elif not isinstance(value, list):
            self._findings.error(where, f"{shown(value)} is no array")
        else:
            for number, item in enumerate(value):
                at = f"{where}[{number}]"
                if item is None:
                    self._findings.error(at, IS_NULL)
                else:
                    self._value(attribute, item, at, depth)

    def _value(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if attribute.type is None:
            self._object(attribute.object_name or "", value, where, depth)
        elif attribute.type.primitive == "json_t" and isinstance(value, dict | list):
            self._free(value, where, depth)
        elif (fault := attribute.type.fault(value)) is not None:
            self._findings.error(where, fault)
        elif attribute.captions:
            self._enumerated(attribute, value, where)

    def _object(self, name: str, value: Any, where: str, depth: int) -> None:
        if not isinstance(value, dict):
            self._findings.error(where, f"{shown(value)} is no object ({name})")
            return
        table = self._schema.object_of(name)
        if table.deprecated is not None:
            self._findings.warning(where, f"object {name} is deprecated: {table.deprecated}")
        self.visit(table, value, where, depth + 1)

    def _enumerated(self, attribute: Attribute, value: Any, where: str) -> None:
        if value not in attribute.captions:
            only = [shown(one) for one in attribute.captions]
            what = f"not {only[0]}" if len(only) == 1 else f"no value of {attribute.name}"
            self._findings.error(where, f"{shown(value)} is {what}")
        elif (sentence := attribute.deprecated_values.get(value)) is not None:
            self._findings.warning(where, f"the value {shown(value)} is deprecated: {sentence}")

    def _requirements(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for attribute in self._missing(table.required, value):
            self._findings.error(below(path, attribute.name), "is required and missing")
        if self._recommended:
            for attribute in self._missing(table.recommended, value):
                self._findings.warning(below(path, attribute.name), "is recommended and missing")
        one_of, just_one = table.at_least_one, table.just_one
        if one_of and not any(_holds(value, name) for name in one_of):
            self._findings.error(path or EVENT, f"has none of {', '.join(one_of)}")
        if just_one:
            found = [name for name in just_one if _holds(value, name)]
            if len(found) != 1:
                what = f"{' and '.join(found)}, of which" if found else "none of"
                of = "only one may be there" if found else ", ".join(just_one)
                self._findings.error(path or EVENT, f"has {what} {of}")

    def _missing(
        self, attributes: tuple[Attribute, ...], value: Mapping[str, Any]
    ) -> Iterator[Attribute]:
        for attribute in attributes:
            if attribute.name not in value and not (
                attribute.profiles and self._listed.isdisjoint(attribute.profiles)
            ):
                yield attribute

    def _captions(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for sibling, attributes in table.siblings.items():
            there = [each for each in attributes if each.name in value]
            where = below(path, sibling)
            for each in there:
                ids, captions = value[each.name], value.get(sibling)
                if not each.is_array:
                    self._caption(each, ids, captions, where)
                elif isinstance(ids, list) and isinstance(captions, list):
                    for number, one in enumerate(ids):
                        of_it = captions[number] if number < len(captions) else None
                        self._caption(each, one, of_it, f"{where}[{number}]")
            if not there and sibling in value:
                names = " or ".join(each.name for each in attributes)
                self._findings.warning(where, f"is there without {names}")

    def _caption(self, attribute: Attribute, number: Any, caption: Any, where: str) -> None:
        captions = attribute.captions
        is_id = isinstance(number, int | str) and not isinstance(number, bool)
        if not is_id or number not in captions:
            return  # told of already, or of no enumeration
        published, of = captions[number], f"{attribute.name} {number}"
        is_other = number == _OTHER and published == _OTHER_CAPTION
        if caption is None or caption == "":
            if is_other:
                self._findings.error(where, f"is missing: {of} says to look there")
            else:
                self._findings.warning(where, f"is missing: {of} is {shown(published)}")
        elif not isinstance(caption, str):
            return  # told of already
        elif is_other:
            if caption != published and caption in captions.values():
                self._findings.warning(where, f"{of} has a caption that has an id of its own")
        elif caption != published:
            self._findings.error(where, f"is {shown(caption)}, but {of} is {shown(published)}")

    def _free(self, value: Any, path: str, depth: int) -> None:
        """Judge what the schema leaves open: only that JSON can hold it."""
        if depth > DEPTH:
            self._findings.error(path, TOO_DEEP)
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                self._free(inner, _inside(value, path, key), depth + 1)
            elif inner is None:
                self._findings.warning(_inside(value, path, key), IS_NULL)
            elif (fault := unwritable(inner)) is not None:
                self._findings.error(_inside(value, path, key), fault)
            if isinstance(key, str) and not is_text(key):
                self._findings.error(_inside(value, path, key), f"its name {NOT_UTF8}")


def _holds(value: Any, name: str) -> bool:
    """Whether something is there; the constraints of some classes name it by its path."""
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value is not None


def _inside(value: Any, path: str, key: Any) -> str:
    return below(path, key) if isinstance(value, dict) else f"{path}[{key}]"
