"""Sentence for people about an error of a configuration."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel, ValidationError

from ocsf_nft.config.sinks import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Maximum number of characters of a key in a sentence: a caller of the control API may send more.
_MOST_CHARACTERS: Final = 100
#: Options whose names are not those of their keys.
_OPTIONS: Final = {"name": "--sandbox", "max_bytes": "--store-max-bytes", "method": "--attribution"}


def sentence_of(error: ValidationError, root: type[BaseModel], *, are_options: bool = False) -> str:
    """Return the first fault of a validation as one sentence with its key and its remedy.

    ``root`` is the class of the validated table. An unknown key is the first fault. With
    ``are_options``, the values are those of options, and the sentence has the option in place of
    the key.
    """
    # An unknown key first: it is often the misspelt name of a missing key.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    *table, key = fault["loc"] or ("",)
    # The type of a sink is in the location, but is no key of the file.
    steps = [step for at, step in enumerate(fault["loc"]) if (at, fault["loc"][0]) != (2, "sink")]
    path = ".".join(map(str, steps))
    path = _option(fault["loc"]) if are_options else path
    path = path if len(path) <= _MOST_CHARACTERS else f"{path[:_MOST_CHARACTERS]}…"
    if fault["type"] == "extra_forbidden":
        model = _model_at(root, table)
        near = difflib.get_close_matches(
            str(key)[:_MOST_CHARACTERS], model.model_fields, n=1, cutoff=0.0
        )
        return f"there is no key {path}: did you mean {near[0]}?"
    if fault["type"] == "tuple_type":
        return f"{path}: must be a list: put it in [ ]"
    if fault["type"] in {"model_type", "model_attributes_type"}:
        return f"{path}: must be one table, such as {{ key = value }}"  # the value may be secret
    if fault["type"] == "union_tag_invalid":
        return f"{path}: there is no sink of this type: give one of {', '.join(KINDS)}"
    if fault["type"] == "literal_error":
        return f"{path}: must be {fault['ctx']['expected'].replace(chr(39), '')}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {message[:1].lower()}{message[1:]}"


def _option(path: Sequence[int | str]) -> str:
    """Return the option with the value at the location ``path`` of an error."""
    *_, key = (step for step in path if isinstance(step, str))
    return _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Return the class of the table at the location ``path`` of an error, below ``model``.

    For example, ``("sink", 0, "file")`` is the first ``[[sink]]`` table, of class FileSink.
    """
    for step in path:
        if isinstance(step, str) and step in model.model_fields:
            model = next(_models(model.model_fields[step].annotation), model)
        elif isinstance(step, str):
            model = KINDS.get(step, model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
