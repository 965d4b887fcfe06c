"""Compiled schemas in files: a small one, and files that are none."""

from __future__ import annotations

import copy
import gzip
import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import get_ocsf_schema

from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.validation import EventValidator, schema_file
from ocsf_nft.validation.schema import versions
from ocsf_nft.validation.schema_file import read_schema

if TYPE_CHECKING:
    from pathlib import Path

#: A class and two objects, in the form of the schema server's export.
SCHEMA: Final[dict[str, Any]] = {
    "version": "1.9.0-dev",
    "dictionary": {
        "types": {
            "attributes": {
                "string_t": {},
                "integer_t": {},
                "long_t": {},
                "port_t": {"type": "integer_t", "range": [0, 65535]},
                "ip_t": {"type": "string_t", "max_len": 40, "regex": "^[0-9a-f.:]+$"},
            }
        }
    },
    "profiles": {"host": {}, "other": {}},
    "objects": {
        "metadata": {
            "attributes": {
                "version": {"type": "string_t", "requirement": "required"},
                "profiles": {"type": "string_t", "is_array": True},
            }
        },
        "endpoint": {
            "attributes": {
                "ip": {"type": "ip_t", "observable": 2},
                "port": {"type": "port_t"},
            },
            "constraints": {"at_least_one": ["ip"]},
        },
        "observable": {
            "attributes": {
                "name": {"type": "string_t"},
                "type_id": {"type": "integer_t", "requirement": "required"},
                "value": {"type": "string_t"},
            }
        },
    },
    "classes": {
        "traffic": {
            "uid": 7001,
            "profiles": ["host"],
            "attributes": {
                "class_uid": {"type": "integer_t", "requirement": "required"},
                "type_uid": {"type": "long_t", "requirement": "required"},
                "activity_id": {
                    "type": "integer_t",
                    "requirement": "required",
                    "sibling": "activity",
                    "enum": {"1": {"caption": "Open"}, "99": {"caption": "Other"}},
                },
                "activity": {"type": "string_t"},
                "device": {
                    "type": "object_t",
                    "object_type": "endpoint",
                    "profiles": ["host"],
                },
                "old": {"type": "string_t", "@deprecated": {"message": "Use <b>new</b>."}},
                "metadata": {
                    "type": "object_t",
                    "object_type": "metadata",
                    "requirement": "required",
                },
                "observables": {
                    "type": "object_t",
                    "object_type": "observable",
                    "is_array": True,
                },
            },
        }
    },
}
EVENT: Final[dict[str, Any]] = {
    "class_uid": 7001,
    "type_uid": 700101,
    "activity_id": 1,
    "activity": "Open",
    "device": {"ip": "10.0.0.1", "port": 80},
    "metadata": {"version": "1.9.0", "profiles": ["host"]},
    "observables": [{"name": "device.ip", "type_id": 2, "value": "10.0.0.1"}],
}


def write(path: Path, content: Any = SCHEMA) -> Path:
    path.write_text(json.dumps(content))
    return path


def faults(path: Path, **changes: Any) -> list[str]:
    validator = EventValidator(compiled=read_schema(path))
    return list(map(str, validator.faults(copy.deepcopy(EVENT) | changes)))


@pytest.mark.parametrize("version", ["1.9.0", "1.9.0-dev"])
def test_event_of_the_schema_has_no_fault(tmp_path: Path, version: str) -> None:
    metadata = EVENT["metadata"] | {"version": version}
    assert faults(write(tmp_path / "schema.json"), metadata=metadata) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type_uid": 700102}, "type_uid * 100 + activity_id"),
        ({"activity": "Begin"}, 'activity: is "Begin", but activity_id 1 is "Open"'),
        ({"activity_id": 2, "type_uid": 700102}, "activity_id: 2 is no value of activity_id"),
        ({"device": {"port": 70000, "ip": "::"}, "observables": []}, "70000 is more than 65535"),
        ({"device": {"port": 1}, "observables": []}, "device: has none of ip"),
        ({"device": {"ip": "x"}, "observables": []}, '"x" is no ip_t'),
        ({"metadata": {"version": "1.9.0"}}, "its profile (host) isn't in metadata.profiles"),
        (
            {"metadata": {"version": "1.9.0", "profiles": ["host", "cloud"]}},
            'there is no profile "cloud" in 1.9.0-dev',
        ),
        ({"metadata": {"version": "1.8.0", "profiles": ["host"]}}, '"1.8.0" is not 1.9.0-dev'),
        ({"old": "x"}, "warning: old: is deprecated: Use new."),
        ({"new": "x"}, "new: is no attribute of traffic"),
        ({"class_uid": 4001}, "4001 is no class in 1.9.0-dev"),
        (
            {"observables": [{"name": "device.ip", "type_id": 3, "value": "10.0.0.1"}]},
            "observables[0].type_id: 3 is not the type",
        ),
    ],
)
def test_fault_is_found_by_the_facts_of_the_schema(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    found = faults(write(tmp_path / "schema.json"), **changes)
    assert any(expected.removeprefix("type_uid ") in each for each in found), found


def test_compressed_schema_is_read(tmp_path: Path) -> None:
    path = tmp_path / "schema.json.gz"
    path.write_bytes(gzip.compress(json.dumps(SCHEMA).encode()))
    assert faults(path) == []


def _without(*path: str) -> Any:
    changed = copy.deepcopy(SCHEMA)
    where = changed
    for step in path[:-1]:
        where = where[step]
    del where[path[-1]]
    return changed


def _of_class(**attributes: Any) -> Any:
    changed = copy.deepcopy(SCHEMA)
    changed["classes"]["traffic"]["attributes"] |= attributes
    return changed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "the file: Input should be a valid dictionary"),
        ({}, "version: Field required"),
        (SCHEMA | {"version": 1.9}, "version: Input should be a valid string"),
        (SCHEMA | {"version": "x\n\x1b[2J"}, "version: String should match pattern"),
        (SCHEMA | {"classes": {"x\n\x1b[2J": 1}}, r"classes.x\n\u001b[2J: Input should be"),
        (_without("classes"), "classes: Field required"),
        (_without("objects"), "objects: Field required"),
        (_without("objects", "endpoint"), 'it has no "endpoint"'),
        (_without("dictionary"), 'it has no "dictionary"'),
        (_without("dictionary", "types", "attributes", "ip_t"), 'it has no "ip_t"'),
        (_without("classes", "traffic", "uid"), "classes.traffic.uid: Field required"),
        (_of_class(activity_id={"type": "integer_t", "enum": {"x": {"caption": "X"}}}), "'x'"),
        (_of_class(device={"type": "object_t"}), 'it has no "object_type"'),
        (SCHEMA | {"types": {"string_t": {"regex": "("}}}, "missing ), unterminated subpattern"),
        (SCHEMA | {"types": {"string_t": {"regex": "(" * 5000}}}, "maximum recursion depth"),
        (SCHEMA | {"types": {"string_t": {"regex": f"a{{{10**20}}}"}}}, "repetition number is too"),
    ],
)
def test_file_that_is_no_schema_is_one_sentence(
    tmp_path: Path, content: Any, expected: str
) -> None:
    path = write(tmp_path / "schema.json", content)
    with pytest.raises(UsageError) as caught:
        read_schema(path)
    sentence = str(caught.value)
    assert sentence.startswith(f'"{path}" is no compiled OCSF schema (')
    assert expected in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"\x1f\x8b", "can't be decompressed"),
        (b"\x1f\x8bxx", "can't be decompressed"),
        (gzip.compress(b"{}", mtime=0)[:-9], "can't be decompressed"),
    ],
)
def test_file_that_is_no_json_is_one_sentence(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=expected):
        read_schema(path)


def test_file_that_can_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        with pytest.raises(AbsentError, match=f"can't be read: {why}"):
            read_schema(path)


def test_schema_that_is_large_after_decompression_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_file, "MAX_BYTES", 1 << 20)
    path = tmp_path / "schema.json.gz"
    path.write_bytes(gzip.compress(b" " * (2 << 20)))
    assert path.stat().st_size < 10_000
    with pytest.raises(UsageError, match="has more than 1 MiB"):
        read_schema(path)


def _positions(value: Any) -> list[tuple[Any, Any]]:
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    inner = [_positions(value[key]) for key in keys if isinstance(value[key], dict | list)]
    return [(value, key) for key in keys] + [each for found in inner for each in found]


@settings(max_examples=200)
@given(data=st.data())
def test_spoilt_schema_is_refused_or_its_validator_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spoilt = copy.deepcopy(SCHEMA)
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(_positions(spoilt)))
        where[key] = data.draw(
            st.sampled_from([None, 0, -1, 1.5, True, "", "x", "object_t", [], [1], {}, {"x": 1}])
        )
    path = write(tmp_path_factory.getbasetemp() / "spoilt.json", spoilt)
    try:
        compiled = read_schema(path)
    except UsageError:
        return
    event = copy.deepcopy(EVENT) | {"class_uid": data.draw(st.sampled_from([0, 7001]))}
    EventValidator(compiled=compiled, recommended=True).faults(event)


@pytest.mark.parametrize("version", versions())
def test_published_schemas_are_compiled_schemas(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "schema.json", get_ocsf_schema(version))
    assert read_schema(path).version == version
