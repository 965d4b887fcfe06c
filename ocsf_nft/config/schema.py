"""JSON Schema of a configuration file, for editors.

The schema accepts each valid file, but also some files with errors, such as a wrong address.
``ocsf-nft config FILE`` makes the full check.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from ocsf_nft.config import Config
from ocsf_nft.config.base_table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Name of the version of JSON Schema that pydantic writes.
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
#: What TOML has no value for, what only repeats a key's name, and what is no keyword of a schema.
_OMITTED: Final = frozenset({"title", "discriminator", "ge", "le"})
_NULL: Final = {"type": "null"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file (draft 2020-12)."""
    made = Config.model_json_schema(mode="validation")
    tables: dict[str, Any] = {
        name: _table(_model(name), table) for name, table in made.pop("$defs").items()
    }
    whole = {"$schema": _DIALECT, "title": "Configuration of ocsf-nft", **_table(Config, made)}
    return {**whole, "$defs": tables}


def _model(name: str) -> type[BaseModel]:
    unseen = BaseModel.__subclasses__()
    while unseen:
        model = unseen.pop()
        if model.__name__ == name and model.__module__.startswith("ocsf_nft.config"):
            return model
        unseen += model.__subclasses__()
    raise LookupError(name)


def description(model: type[BaseModel], key: str) -> str:
    """Return the description of the key ``key`` in the configuration table ``model``.

    The description is the string below the key in the source of the class, or of a base. Raises
    LookupError if there is none.
    """
    for base in model.__mro__:
        if issubclass(base, Table) and key in (found := dict(_descriptions(base))):
            return found[key]
    raise LookupError(f"{model.__name__}.{key} has no description")


def _descriptions(model: type[Table]) -> Iterator[tuple[str, str]]:
    (table,) = ast.parse(inspect.getsource(model)).body
    for key, text in pairwise(ast.iter_child_nodes(table)):
        match key, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                yield name, words


def _table(model: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    keys = {
        key: {"description": description(model, key), **_simple(value)}
        for key, value in schema["properties"].items()
    }
    summary, _, _ = schema.get("description", "").partition("\n\n")
    text = " ".join(summary.replace("``", "`").split())
    found = {"type": "object", "description": text, "properties": keys}
    return found | {
        name: schema[name] for name in ("required", "additionalProperties") if name in schema
    }


def _simple(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_simple(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: _simple(value)
        for key, value in schema.items()
        if key not in _OMITTED and value is not None
    }
    # TOML has no null: a file leaves out the key instead.
    choices = [each for each in found.get("anyOf", ()) if each != _NULL]
    if len(choices) == 1:
        del found["anyOf"]
        return choices[0] | found
    return found | {"anyOf": choices} if choices else found
