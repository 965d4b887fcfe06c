"""Index template and ingest pipeline of OpenSearch, made from the attributes of all events.

The mapping is strict, and has at most :data:`MAX_FIELDS` fields. Objects far inside an event are
each one field of the type ``flat_object``, whose attributes can be searched by their paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.delivery.parquet_columns import Column

MAX_FIELDS: Final = 200
#: A ``flat_object`` can't be aggregated, so the sandbox has a field of its own.
PIPELINE: Final = {
    "description": "Sets @timestamp and sandbox of an event of ocsf-nft",
    "processors": [
        {"date": {"field": "time", "formats": ["UNIX_MS"], "timezone": "UTC"}},
        {
            "set": {
                "if": "ctx.unmapped?.sandbox != null",
                "field": "sandbox",
                "value": "{{{unmapped.sandbox}}}",
            }
        },
    ],
}
_FLAT: Final = {"type": "flat_object"}
_DATE: Final = {"type": "date", "format": "epoch_millis"}
#: Lucene indexes a value of at most 32,766 bytes; a character has at most four.
_KEYWORD: Final = {"type": "keyword", "ignore_above": 8191}
_STORED: Final = {"type": "keyword", "index": False, "doc_values": False}
_TYPES: Final[Mapping[Scalar, Mapping[str, Any]]] = {
    Scalar.TEXT: _KEYWORD,
    Scalar.FLAG: {"type": "boolean"},
    Scalar.INT32: {"type": "integer"},
    Scalar.INT64: {"type": "long"},
    Scalar.JSON: _FLAT,
}
#: Fields by their names, wherever they are.
_BY_NAME: Final[Mapping[str, Mapping[str, Any]]] = {
    "desc": {"type": "text"},
    "ip": {"type": "ip"},
    "message": {"type": "text"},
    "raw_data": _STORED,
    "status_detail": {"type": "text"},
}
#: Objects at this depth, such as ``actor.process.user``, are one field each.
_FLAT_DEPTH: Final = 3
#: Objects that repeat others, or whose attributes vary.
_ALWAYS_FLAT: Final = frozenset({
    "app", "attacks", "device.container", "device.os", "dst_endpoint.container", "enrichments",
    "evidences", "finding_info.attacks", "finding_info.related_events", "metadata.loggers",
    "metadata.tags", "observables", "src_endpoint.container",
})  # fmt: skip


def template(columns: Struct) -> dict[str, Any]:
    """Return the body of ``PUT _index_template``; ``columns`` are those of all events."""
    made = {"@timestamp": {"type": "date"}, "sandbox": _KEYWORD}
    properties = {**made, **_properties(columns, ())}
    return {
        "index_patterns": ["ocsf-*"],
        "priority": 200,
        "template": {
            "settings": {
                "index.default_pipeline": "ocsf-nft",
                "index.mapping.total_fields.limit": MAX_FIELDS,
            },
            "mappings": {"dynamic": "strict", "date_detection": False, "properties": properties},
        },
    }


def fields(properties: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all fields of a mapping; OpenSearch counts objects too."""
    for name, each in properties.items():
        yield name
        yield from fields(each.get("properties", {}))


def _properties(struct: Struct, path: tuple[str, ...]) -> dict[str, Any]:
    return {name: _field(column, (*path, name)) for name, column in struct.columns.items()}


def _field(column: Column, path: tuple[str, ...]) -> dict[str, Any]:
    while isinstance(column, ListOf):
        column = column.item
    name = path[-1]
    if isinstance(column, Struct):
        if len(path) >= _FLAT_DEPTH or ".".join(path) in _ALWAYS_FLAT:
            return _FLAT
        return {"properties": _properties(column, path)}
    if column is Scalar.INT64 and name.endswith("time"):
        return _DATE
    return {**_BY_NAME.get(name, _TYPES[column])}
