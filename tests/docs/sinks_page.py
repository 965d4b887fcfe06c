"""Generator of the reference page about sinks: every type, every key and its default.

The page is generated from the classes of the configuration tables and their docstrings. To write
the page, run ``make reference``.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

from ocsf_nft.config.events import StoreConfig
from ocsf_nft.config.sinks import KINDS
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, TlsTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_WORDS: Final = {
    str: "text", int: "number", float: "number", bool: "true or false", Path: "path",
    SecretTable: "[secret](#secrets)", TlsTable: "[tls](#tls)",
}  # fmt: skip
_HEAD: Final = "| key | type | default |\n|---|---|---|"
_TITLE: Final = """\
# Sinks

<!-- `make reference` writes this page: change the tables in ocsf_nft/config/, not this text. -->

Each `[[sink]]` of a configuration file has a `type`, by default `file`. Each event is in the
[store](#store) before any sink gets it. A sink that is down gets its events when it is up again.
`ocsf-nft config FILE --connect` tests the sinks."""


def guide() -> str:
    """Return the text of the reference page about sinks, in Markdown."""
    parts = [_TITLE, "## Every sink", _summary(SinkTable), _table(SinkTable, set())]
    common = set(SinkTable.model_fields)
    for kind, table in KINDS.items():
        parts += [f"## {kind}", _summary(table)]
        if table.extra:
            parts.append(f"Needs the extra `ocsf-nft[{table.extra}]`.")
        parts.append(_table(table, common))
    parts += ["## Secrets", _summary(SecretTable), _table(SecretTable, set())]
    parts += ["## TLS", _summary(TlsTable), _table(TlsTable, set())]
    parts += ["## Store", _summary(StoreConfig), _table(StoreConfig, set())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(table: type[BaseModel]) -> str:
    return inspect.cleandoc(table.__doc__ or "").replace("``", "`")


def _table(table: type[BaseModel], common: set[str]) -> str:
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_default(field, is_common=name in common)} |"
        for name, field in table.model_fields.items()
        # A key that all sinks have is listed only if this table changes its default.
        if name != "type"
        and (name not in common or field.default != SinkTable.model_fields[name].default)
    ]
    return "\n".join([_HEAD, *rows]) if rows else ""


def _type(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    return " or ".join(dict.fromkeys(_kinds(annotation)))


def _kinds(annotation: Any) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        for each in inner:
            if each is not NoneType:
                yield _type(each)
    elif origin is Annotated:
        yield _type(inner[0])
    elif origin is Literal:
        yield ", ".join(f"`{each}`" for each in inner)
    elif origin is tuple:
        yield f"list of {_type(inner[0])}"
    else:
        yield f"table of {_type(inner[-1])}"


def _default(field: FieldInfo, *, is_common: bool) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if field.is_required():
        return "required"
    if default is None:
        return "none" if is_common else ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple | dict):
        return "all" if default else "none"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def main() -> None:
    """Write the reference page about sinks to the file given on the command line."""
    parser = argparse.ArgumentParser(description="Write the guide to sinks.")
    parser.add_argument("page", type=Path)
    page: Path = parser.parse_args().page
    try:
        page.write_text(guide(), encoding="utf-8")
    except OSError as error:
        sys.exit(f"{page}: {error.strerror}")


if __name__ == "__main__":
    main()
