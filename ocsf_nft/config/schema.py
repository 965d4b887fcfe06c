"""JSON Schema of a configuration file, for editors.

The schema accepts each valid file, but also some files with errors, such as a wrong address.
``ocsf-nft config FILE`` makes the full check.
"""

from __future__ import annotations

from typing import Any, Final

from ocsf_nft.config import Config

#: Name of the version of JSON Schema that pydantic writes.
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
#: What TOML has no value for, what only repeats a key's name, and what is no keyword of a schema.
_OMITTED: Final = frozenset({"title", "discriminator", "ge", "le"})
_NULL: Final = {"type": "null"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file (draft 2020-12)."""
    made = _simple(Config.model_json_schema(mode="validation"))
    return {"$schema": _DIALECT, "title": "Configuration of ocsf-nft", **made}


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
