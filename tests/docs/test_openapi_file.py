"""OpenAPI document of the control API, and its page."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import orjson
from jsonschema import Draft202012Validator

from ocsf_nft.control.openapi import document, openapi
from ocsf_nft.control.problem_types import TYPES
from tests.docs.commands import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE: Final = ROOT / "docs/reference/control-api.openapi.json"
PAGE: Final = ROOT / "docs/reference/control-api.md"
_METHODS: Final = ("get", "put", "post", "delete")


def test_the_file_is_up_to_date() -> None:
    assert FILE.read_bytes() == openapi(), "run `make reference`"


def test_document_is_written_to_the_given_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.docs.openapi_file"]
    subprocess.run([*command, tmp_path / "made.json"], check=True, cwd=ROOT)
    assert (tmp_path / "made.json").read_bytes() == openapi()


def test_schemas_are_valid_and_all_references_lead_to_one() -> None:
    schemas = document()["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    found = set(_references(document()))
    assert found == {f"#/components/schemas/{name}" for name in schemas}


def _references(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        if "$ref" in found:
            yield found["$ref"]
        for value in found.values():
            yield from _references(value)
    elif isinstance(found, list):
        for value in found:
            yield from _references(value)


def test_each_key_of_a_schema_has_a_description() -> None:
    bare = [
        f"{name}.{key}"
        for name, schema in document()["components"]["schemas"].items()
        for key, value in schema.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []


def test_operations_have_unique_names_and_answers_for_errors() -> None:
    operations = [
        operation
        for path in document()["paths"].values()
        for method, operation in path.items()
        if method in _METHODS
    ]
    assert len({each["operationId"] for each in operations}) == len(operations) == 10
    assert all(each["responses"] for each in operations)


def test_page_names_each_path_and_each_kind_of_problem() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in document()["paths"]:
        assert path.replace("{name}", "NAME").replace("{key}", "ID") in page
    for kind in TYPES:
        assert f"| `{kind.urn}` | {kind.status} |" in page


def test_document_is_json_of_openapi_3_1() -> None:
    assert orjson.loads(FILE.read_bytes())["openapi"] == "3.1.0"
