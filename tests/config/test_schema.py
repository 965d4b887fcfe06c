"""JSON Schema of a configuration file."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from jsonschema import Draft202012Validator

from ocsf_nft import config
from ocsf_nft.config import schema
from ocsf_nft.config.base_table import Table

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMA = schema.json_schema()
_VALIDATOR = Draft202012Validator(_SCHEMA)


def test_schema_is_valid_against_the_metaschema() -> None:
    assert _SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(_SCHEMA)


def test_each_key_and_table_has_a_description() -> None:
    tables = {"Config": _SCHEMA} | _SCHEMA["$defs"]
    assert {name for name, table in tables.items() if not table["description"]} == set()
    bare = [
        f"{name}.{key}"
        for name, table in tables.items()
        for key, value in table["properties"].items()
        if not value.get("description")
    ]
    assert bare == []


class _Bare(Table):
    """Table with a key without a description."""

    colour: int = 1


def test_key_without_a_description_is_an_error() -> None:
    with pytest.raises(LookupError, match="colour"):
        _Bare.model_json_schema()


_VALID = """
[store]
max_bytes = "512MiB"
max_age = 3600.5
[[severity]]
severity = "low"
protocol = 17
[[severity]]
severity = "high"
protocol = "tcp"
destination = "203.0.113.0/24"
[[sandbox]]
name = "a"
proxy = ["10.0.0.1:3128"]
[sandbox.container]
uid = "1"
[[sink]]
path = "/var/log/events.jsonl"
[[sink]]
type = "stdout"
[[sink]]
type = "http"
name = "siem"
url = "https://siem.example/"
headers = { X-Key = { env = "KEY" }, X-Other = "text" }
bearer = { file = "/run/token" }
"""


def test_valid_file_fits_the_schema(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(_VALID)
    assert config.load(file).sandbox
    assert [error.message for error in _VALIDATOR.iter_errors(tomllib.loads(_VALID))] == []


@pytest.mark.parametrize(
    "text",
    [
        "colour = 1",
        'host_log = "syslog"',
        "listen = 9464",
        "[sandbox]\nname = 'a'",
        "[[sandbox]]\nproxy = ['10.0.0.1:3128']",
        "[[sandbox]]\nname = 'a'\nproxy = '10.0.0.1:3128'",
        "[[sandbox]]\nname = 'a'\ngateway_port = 0",
        "[store]\nmax_bytes = 'lots'",
        "[store]\nwhen_full = 'stop'",
        "[[sink]]\ntype = 'carrier pigeon'",
        "[[sink]]\ntype = 'http'",
        "[[sink]]\npath = '/a'\nurl = 'http://a/'",
        "[[severity]]\nport = 1",
    ],
)
def test_wrong_file_does_not_fit_the_schema(text: str) -> None:
    assert not _VALIDATOR.is_valid(tomllib.loads(text))
