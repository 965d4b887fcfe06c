"""Detection rules of detections/sigma, converted to the queries of databases and SIEMs.

``python -m tests.detections.conversion`` writes the files below detections/ again.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma.backends.opensearch.opensearch import OpensearchLuceneBackend
from sigma.backends.splunk.splunk import SplunkBackend
from sigma.processing.pipeline import ProcessingPipeline
from sigma.rule import SigmaRule

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct
from ocsf_nft.ocsf.versions import STORED, VERSIONS
from tests.detections import athena_tables, opensearch_template
from tests.detections.duckdb_backend import DuckDbBackend
from tests.detections.samples import SAMPLES, events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.delivery.parquet_columns import Column

FOLDER: Final = Path(__file__).parents[2] / "detections"
#: Splunk's source type of the events (docs/how-to/splunk.md).
_SPLUNK: Final = """
name: events of ocsf-nft in Splunk
priority: 50
transformations:
  - id: sourcetype
    type: add_condition
    conditions: {sourcetype: "ocsf:ocsf-nft"}
"""
_GENERATED: Final = "made from detections/sigma by `make detections`"
_DUCKDB_TYPES: Final = {
    Scalar.TEXT: "VARCHAR",
    Scalar.FLAG: "BOOLEAN",
    Scalar.INT32: "INTEGER",
    Scalar.INT64: "BIGINT",
    Scalar.JSON: "JSON",
}


def rules() -> dict[str, SigmaRule]:
    """Return the rules by the names of their files."""
    paths = sorted((FOLDER / "sigma").glob("*.yml"))
    return {path.stem: SigmaRule.from_yaml(path.read_text(encoding="utf-8")) for path in paths}


def duckdb_query(rule: SigmaRule) -> str:
    """Return the rule as a query of the view ``events``."""
    return _converted(DuckDbBackend(), rule)  # type: ignore[no-untyped-call]


def splunk_query(rule: SigmaRule) -> str:
    """Return the rule as a search of Splunk."""
    return _converted(SplunkBackend(ProcessingPipeline.from_yaml(_SPLUNK)), rule)


def opensearch_query(rule: SigmaRule) -> str:
    """Return the rule as a Lucene query of OpenSearch and Elasticsearch."""
    return _converted(OpensearchLuceneBackend(), rule)


def _converted(backend: Any, rule: SigmaRule) -> str:
    # A pipeline changes the rule itself.
    (query,) = backend.convert_rule(copy.deepcopy(rule))
    return str(query)


def files() -> dict[str, str]:
    """Return the texts of the generated files by their paths below detections/."""
    found = rules()
    return {
        "athena/tables.sql": athena_tables.statements(_every_column()),
        "duckdb/rules.sql": _duckdb(found),
        "duckdb/jsonl.sql": _view(f"read_json('events.jsonl', {_json_options()})"),
        "duckdb/parquet.sql": _view(
            "read_parquet('ext/**/*.parquet', union_by_name = true, hive_partitioning = true)"
        ),
        "opensearch/index-template.json": _json(
            opensearch_template.template(_merged(_every_column().values()))
        ),
        "opensearch/ingest-pipeline.json": _json(opensearch_template.PIPELINE),
        "opensearch/queries.json": _opensearch(found),
        "splunk/TA-ocsf-nft/default/savedsearches.conf": _splunk(found),
    } | {f"samples/{name}.jsonl": _samples(name) for name in SAMPLES}


def _duckdb(found: Mapping[str, SigmaRule]) -> str:
    views = (
        f"-- {rule.title} ({rule.level})\n"
        f'CREATE OR REPLACE VIEW "{name}" AS\n{duckdb_query(rule)};\n'
        for name, rule in found.items()
    )
    return "\n".join((f"-- One view for each rule; {_GENERATED}.\n", *views))


def _view(source: str) -> str:
    return (
        f"-- Each event once; {_GENERATED}. Change the path.\n"
        f"CREATE OR REPLACE VIEW events AS\nSELECT * FROM {source}\n"
        "QUALIFY row_number() OVER (PARTITION BY metadata.uid) = 1;\n"
    )


def _json_options() -> str:
    every = _merged(columns(STORED).values()).columns.items()
    listed = ",\n".join(f"    {_quoted(name)}: '{_duckdb_type(each)}'" for name, each in every)
    return f"format = 'newline_delimited', columns = {{\n{listed}\n}}"


def _every_column() -> dict[int, Struct]:
    """Return the columns of each class in all versions."""
    versions = [columns(version) for version in VERSIONS]
    return {uid: _merged(each[uid] for each in versions) for uid in versions[0]}


def _merged(structs: Iterable[Struct]) -> Struct:
    """Return an object with the attributes of all objects."""
    found: dict[str, Column] = {}
    for struct in structs:
        for name, column in struct.columns.items():
            found[name] = _both(found.get(name), column)
    return Struct(found)


def _both(one: Column | None, other: Column) -> Column:
    if isinstance(one, Struct) and isinstance(other, Struct):
        return _merged((one, other))
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        return ListOf(_both(one.item, other.item))
    return other


def _duckdb_type(column: Column) -> str:
    if isinstance(column, Scalar):
        return _DUCKDB_TYPES[column]
    if isinstance(column, ListOf):
        return f"{_duckdb_type(column.item)}[]"
    inner = (f"{_quoted(name)} {_duckdb_type(each)}" for name, each in column.columns.items())
    return f"STRUCT({', '.join(inner)})"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _opensearch(found: Mapping[str, SigmaRule]) -> str:
    bodies = {
        name: {"query": {"query_string": {"query": opensearch_query(rule)}}}
        for name, rule in found.items()
    }
    return _json(bodies)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _splunk(found: Mapping[str, SigmaRule]) -> str:
    # A search of another app may have the same name, so each has the product's name.
    stanzas = (
        f"[ocsf-nft: {rule.title}]\n"
        f"description = {' '.join((rule.description or '').split())}\n"
        f"search = {splunk_query(rule)}\n"
        "dispatch.earliest_time = -24h\ndispatch.latest_time = now\n"
        for rule in found.values()
    )
    return "\n".join((f"# {_GENERATED}\n", *stanzas))


def _samples(name: str) -> str:
    found = events()
    matching, other = (found[each] for each in SAMPLES[name])
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in (matching, other))


def main() -> None:
    """Write the generated files."""
    for name, text in files().items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
