"""Base of all tables in a configuration file, and types of their values."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.safe_text import encodable
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add descriptions to the JSON Schema of a table: its summary, and the texts below its keys."""
    summary, _, _ = schema.get("description", "").partition("\n\n")
    schema["description"] = " ".join(summary.replace("``", "`").split())
    bases = [base for base in reversed(model.__mro__) if issubclass(base, Table)]
    try:
        sources = list(map(inspect.getsource, bases))
    except OSError:  # the program has no source files
        return
    texts: dict[str, str] = {}
    for source in sources:
        (tree,) = ast.parse(source).body
        for key, text in pairwise(ast.iter_child_nodes(tree)):
            match key, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    texts[name] = words
    for key, value in schema["properties"].items():
        value["description"] = texts[key]


class Table(BaseModel):
    """Base of all tables in a configuration file: immutable, and an unknown key is an error.

    The string below a key is its description in the JSON Schema of a file.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, defer_build=True, json_schema_extra=_describe
    )


def checked(check: Callable[[str], Any]) -> BeforeValidator:
    """Return a pydantic validator that accepts only a text, and converts it with ``check``.

    ``check`` is a function that takes the text and returns the final value. If it raises
    UsageError, the validator reports a configuration error with the same message.
    """

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {_kind(value)}")  # noqa: TRY004 - for pydantic
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(validate, json_schema_input_type=str)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):  # not shown, as it may contain a secret
        return "a list"
    return "a table" if isinstance(value, dict) else "a date"


def _file_name(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty: leave it out for its default")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"must not hold a NUL character, which {quoted(value)} does")
    if isinstance(value, str) and encodable(value) != value:  # from a command line
        raise ValueError(f"must be UTF-8, which {quoted(value)} is not")
    return value


FileName = BeforeValidator(_file_name)

_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(|[KMGT]i?B|B)")
_AGE: Final = re.compile(r"([0-9]{1,9}) ?([smhd])")
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _size(value: object) -> object:
    """Convert a text such as ``512MiB`` to a number of bytes; return any other type unchanged."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(f"{quoted(value)} is no size: write 512MiB, 10GB or a number of bytes")
    number, unit = found.groups()
    base = 1024 if "i" in unit else 1000
    return int(number) * base ** _POWERS[unit.removesuffix("B").removesuffix("i")]


def _age(value: object) -> object:
    """Convert a text such as ``30d`` to a number of seconds; return any other type unchanged."""
    if not isinstance(value, str):
        return value
    found = _AGE.fullmatch(value)
    if found is None:
        raise ValueError(
            f"{quoted(value)} is no time: write 90s, 15m, 12h, 30d or a number of seconds"
        )
    return int(found[1]) * _SECONDS[found[2]]


_SizeText = Annotated[str, Field(pattern=f"^{_SIZE.pattern}$")]
_AgeText = Annotated[str, Field(pattern=f"^{_AGE.pattern}$")]
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | _SizeText)]
Seconds = Annotated[float, BeforeValidator(_age, json_schema_input_type=float | _AgeText)]
