"""Field guide: a page with every attribute of our events and the source of its value.

It is generated from the models. As a program, the module updates the guide between two markers of
a page: ``python -m ocsf_nft.ocsf.field_guide docs/reference/events.md``.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.enums import Captioned, ObservableType
from ocsf_nft.ocsf.events import CLASSES, Event
from ocsf_nft.ocsf.model import Model, children
from ocsf_nft.ocsf.versions import LATEST, OBSERVABLES_SINCE, SINCE, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

BEGIN: Final = "<!-- From here on `make reference` writes: change the models, not this text. -->"
END: Final = "<!-- Here ends what `make reference` writes. -->"

_WORDS: Final = {int: "integer", str: "text", bool: "boolean", dict: "object"}
_HEAD: Final = """\
| attribute | type | from | there | where it is from |
|---|---|---|---|---|"""
_INTRODUCTION: Final = f"""\
Attributes are those of OCSF {LATEST}; what *from* is empty for is in all versions that we tell,
from {VERSIONS[0]} on. What is not known is left out, and is never null. A *time* is an integer:
milliseconds since the epoch, UTC. An id stands beside its caption; the ids listed are those that
we emit."""

#: Conversions of :mod:`ocsf_nft.ocsf.versions` before a version, in the same order.
REWORDED: Final = (
    ("1.3.0", 'Network Activity wants a `src_endpoint`: one that nobody knows is `"unknown"`.'),
    ("1.3.0", "A related event has `type` in place of `type_name`."),
    ("1.4.0", 'Network Activity wants a `dst_endpoint`: one that nobody knows is `"unknown"`.'),
    (
        "1.4.0",
        "`action_id` 3 Observed is 1 Allowed for what a permissive fence let pass, else 0 Unknown.",
    ),
    ("1.4.0", "A process has `lineage`, paths with the oldest first, in place of `ancestry`."),
    ("1.6.0", "A process has `tid` in place of `ptid`."),
)


def guide() -> str:
    """Return the field guide, in Markdown."""
    parts = ["## Field guide", _INTRODUCTION]
    for uid, event in CLASSES.items():
        parts += [f"### {_title(event)} ({uid})", _summary(event), _table(event)]
    parts.append("### Objects")
    for model in _objects():
        parts += [f"#### {_title(model)}", f"{_summary(model)} {_uses(model)}", _table(model)]
    parts += ["### Profiles", _PROFILES, _profiles()]
    parts += ["### Older versions", _OLDER, *_older()]
    return "\n\n".join(parts) + "\n"


_PROFILES: Final = """\
`metadata.profiles` lists the profiles that attributes of the event are of; captions come with their
ids."""
_OLDER: Final = """\
An event is the same in every version: its `metadata.uid`, its times and its counts are. What a
version has no attribute for is left out of it, at any depth, and `observables` and
`metadata.profiles` are of what is left. Before 1.4.0 a finding's `device` is of the profile
host."""


def _title(model: type[Model]) -> str:
    """Return the name of an event class in the schema, or the name of an object in words."""
    if issubclass(model, Event):
        return str(get_args(model.model_fields["class_name"].annotation)[0])
    return re.sub(r"(?<=[a-z])[A-Z]", lambda found: f" {found[0].lower()}", model.__name__)


def _summary(model: type[Model]) -> str:
    return _code(inspect.cleandoc(model.__doc__ or ""))


def _code(text: str) -> str:
    return text.replace("``", "`")


def _objects() -> list[type[Model]]:
    """Return the models of all objects in events, sorted by title."""
    found: set[type[Model]] = set()
    waiting: list[type[Model]] = list(CLASSES.values())
    while waiting:
        held = set(children(waiting.pop()).values()) - found
        found |= held
        waiting += held
    return sorted(found, key=_title)


def _uses(model: type[Model]) -> str:
    """Return the sentence with the attributes that contain such an object."""
    uses: dict[str, list[str]] = {}
    for holder in (*CLASSES.values(), *_objects()):
        for name, kind in children(holder).items():
            if kind is model:
                since = SINCE.get(holder, {}).get(name)
                where = _title(holder) if since is None else f"{_title(holder)} (from {since})"
                uses.setdefault(name, []).append(where)
    listed = "; ".join(f"`{name}` of {', '.join(holders)}" for name, holders in uses.items())
    return f"It is {listed}."


def _table(model: type[Model]) -> str:
    return "\n".join([_HEAD, *_rows(model)])


def _rows(model: type[Model]) -> Iterator[str]:
    fields = model.model_fields
    since = SINCE.get(model, {})
    for name, field in fields.items():
        if _id_of(name) in fields:
            continue  # a caption is in the row of its id
        captions = [f"`{other}`" for other in fields if _id_of(other) == name]
        cells = (
            ", ".join([f"`{name}`", *captions]),
            _type(name, field.annotation) + ", text" * len(captions),
            since.get(name, ""),
            "when known" if NoneType in get_args(field.annotation) else "always",
            _source(field),
        )
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _id_of(name: str) -> str:
    """Return the attribute whose caption would be called ``name``."""
    return f"{name.removesuffix('_name')}_id"


def _type(name: str, annotation: Any) -> str:
    in_words = _in_words(annotation)
    is_time = in_words == "integer" and (name == "time" or name.endswith("_time"))
    return "time" if is_time else in_words


def _in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in {Union, UnionType, Annotated}:
        return _in_words(next(each for each in arguments if each is not NoneType))
    if origin is Literal:
        return _in_words(type(arguments[0]))
    if origin is tuple:
        return f"list of {_in_words(arguments[0])}"
    if issubclass(origin, Model):
        title = _title(origin).lower()
        return f"[{title}](#{title.replace(' ', '-')})"
    return _WORDS[int if issubclass(origin, Captioned) else origin]


def _source(field: FieldInfo) -> str:
    """Return the source of an attribute's value, and its possible ids."""
    if get_origin(field.annotation) is Literal:
        return f"`{get_args(field.annotation)[0]}`"
    description = _code(field.description or "")
    if ids := ", ".join(map(_id, _ids(field.annotation))):
        return f"{description}<br>{ids}"
    return description


def _ids(annotation: Any) -> Iterable[Captioned]:
    kinds = (annotation, *get_args(annotation))
    return next(
        (tuple(kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, Captioned)),
        (),
    )


def _id(member: Captioned) -> str:
    text = f"`{int(member)}` {member.caption}"
    if isinstance(member, ObservableType) and (since := OBSERVABLES_SINCE.get(member)):
        return f"{text} (from {since})"
    return text


def _profiles() -> str:
    rows = ["| profile | in | attributes |", "|---|---|---|"]
    for profile, model, names in sorted(_profile_attributes(), key=lambda one: one[0]):
        rows.append(f"| {profile} | {_title(model)} | {_named(names)} |")
    return "\n".join(rows)


def _profile_attributes() -> Iterator[tuple[str, type[Model], list[str]]]:
    """Yield each profile, each model and the model's attributes from that profile."""
    for model in (*CLASSES.values(), *_objects()):
        for profile, names in model.profile_attributes.items():
            if ours := [name for name in names if name in model.model_fields]:
                yield profile, model, ours


def _older() -> Iterator[str]:
    for version in reversed(VERSIONS):
        news = [*_new_attributes(version), *_new_observables(version)]
        reworded = [text for since, text in REWORDED if since == version]
        if news:
            yield "\n".join([f"Before {version} there is no", "", *(f"- {each}" for each in news)])
        if reworded:
            yield "\n".join([f"Before {version}:", "", *(f"- {each}" for each in reworded)])


def _new_attributes(version: str) -> Iterator[str]:
    for model, table in SINCE.items():
        if names := [name for name, since in table.items() if since == version]:
            yield f"{_named(names)} of {_title(model)}"


def _new_observables(version: str) -> Iterator[str]:
    kinds = [kind for kind, since in OBSERVABLES_SINCE.items() if since == version]
    if kinds:
        yield f"observable of type {', '.join(map(_id_alone, kinds))}"


def _id_alone(kind: ObservableType) -> str:
    return f"`{int(kind)}` {kind.caption}"


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def with_current_guide(page: str) -> str:
    """Return ``page`` with the current guide; raises UsageError if a marker is missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page has no field guide: give a page that has {BEGIN} and {END}")
    return f"{head}{begin}\n\n{guide()}\n{end}{tail}"


def main() -> None:
    """Update the guide in a page."""
    parser = argparse.ArgumentParser(description="Update the field guide in a page.")
    parser.add_argument("page", type=Path, help="the page, which has the guide's two markers")
    page: Path = parser.parse_args().page
    try:
        page.write_text(with_current_guide(page.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, UsageError) as error:
        sys.exit(f"{page}: {error}")


if __name__ == "__main__":
    main()
