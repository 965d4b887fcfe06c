"""Tests of the tables of the published schema, and of the values that each data type accepts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ocsf_json_schema
import pytest

from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.validation import EventValidator, schema

if TYPE_CHECKING:
    from collections.abc import Callable

VERSIONS = ("1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0", "1.7.0", "1.8.0")


def test_schema_versions_are_those_of_the_package_from_1_1_on() -> None:
    assert schema.versions()[: len(VERSIONS)] == VERSIONS


def test_schema_versions_include_later_releases_of_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carried = {"1.0.0-rc.2", "1.0.0", "1.9.0-dev", "1.10.0", "1.9.0", "README", "1.8.0"}
    monkeypatch.setattr(ocsf_json_schema, "get_packaged_versions", lambda: carried)
    assert schema.versions() == ("1.8.0", "1.9.0", "1.10.0")


@pytest.mark.parametrize(
    ("given", "full"), [("1.1", "1.1.0"), ("1.1.0", "1.1.0"), ("1.8", "1.8.0")]
)
def test_schema_version_has_a_short_form(given: str, full: str) -> None:
    assert schema.full_version(given) == full


@pytest.mark.parametrize(
    "given", ["", "1", "1.0.0", "1.1.1", "v1.8.0", "1.8.0.0", "\u0661.1.0", "../x"]
)
def test_schema_unknown_version_raises_with_the_known_ones(given: str) -> None:
    with pytest.raises(UsageError, match=r"1\.1\.0, 1\.2\.0, 1\.3\.0.*1\.8\.0"):
        schema.full_version(given)


def test_validator_of_one_version_reads_only_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    published: Callable[[str], Any] = ocsf_json_schema.get_ocsf_schema

    def get(version: str) -> Any:
        read.append(version)
        return published(version)

    monkeypatch.setattr(ocsf_json_schema, "get_ocsf_schema", get)
    schema.load.cache_clear()
    validator = EventValidator("1.3.0")
    assert read == []
    for _ in range(2):
        validator.faults({"class_uid": 4001, "metadata": {"version": "1.1.0"}})
    assert read == ["1.3.0"]


def test_validator_without_the_extra_raises_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ocsf_json_schema", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'ocsf-nft\[validate\]'"):
        EventValidator()


def test_schema_package_is_not_imported_before_the_first_validation() -> None:
    program = (
        "import sys, ocsf_nft.validation, ocsf_nft.cli.validate; "
        "raise SystemExit('ocsf_json_schema' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_schema_makes_a_table_of_every_class_and_object(version: str) -> None:
    published = ocsf_json_schema.get_ocsf_schema(version)
    ours = schema.load(version)
    for one in published["classes"].values():
        table = ours.class_of(one["uid"])
        assert table is not None
        assert table.attributes.keys() == one["attributes"].keys()
        assert table.profiles <= ours.profiles
    for name, one in published["objects"].items():
        assert ours.object_of(name).attributes.keys() == one["attributes"].keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_schema_has_profiles_types_and_enumerations_of_each_export_structure(
    version: str,
) -> None:
    ours = schema.load(version)
    table = ours.class_of(4001)
    assert table is not None
    assert {"host", "network_proxy", "security_control", "container"} <= ours.profiles
    assert table.attributes["action_id"].profiles == {"security_control"}
    assert table.attributes["action_id"].captions[2] == "Denied"
    assert table.attributes["action_id"].sibling == "action"
    assert table.attributes["time"].profiles == set()
    port = ours.object_of("network_endpoint").attributes["port"].type
    assert port is not None
    assert (port.name, port.primitive, port.minimum, port.maximum) == (
        "port_t", "integer_t", 0, 65535,
    )  # fmt: skip
    address = ours.object_of("network_endpoint").attributes["ip"]
    assert address.observables == {2}
    assert address.type is not None
    assert address.type.pattern is not None


def test_schema_deprecation_names_the_replacement_without_markup() -> None:
    finding = schema.load("1.8.0").class_of(2001)
    assert finding is not None
    assert finding.deprecated is not None
    assert finding.deprecated.startswith("Use the new specific classes")
    assert "<" not in finding.deprecated


PUBLISHED: dict[str, Any] = ocsf_json_schema.get_ocsf_schema("1.8.0")["dictionary"]["types"][
    "attributes"
]


def fault(name: str, value: Any) -> str | None:
    return schema.data_type(name, PUBLISHED).fault(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boolean_t", False),
        ("integer_t", 0),
        ("integer_t", -(1 << 63)),
        ("long_t", (1 << 63) - 1),
        ("timestamp_t", 1767225600000),
        ("float_t", 0.5),
        ("float_t", 1),
        ("string_t", ""),
        ("string_t", "Größe 猫 🐈"),
        ("json_t", "text"),
        ("json_t", True),
        ("port_t", 0),
        ("port_t", 65535),
        ("ip_t", "203.0.113.7"),
        ("ip_t", "2001:db8::7"),
        ("ip_t", "fe80::1%eth0"),
        ("mac_t", "02:00:5e:10:00:00"),
        ("uuid_t", "5b0f9df2-6a1f-4a6e-9c55-8c8c0f2a7d01"),
        ("datetime_t", "2026-01-01T00:00:00.5+01:00"),
        ("email_t", "a.b@example.com"),
        ("bytestring_t", "AAA="),
    ],
)
def test_datatype_accepts(name: str, value: Any) -> None:
    assert fault(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("boolean_t", 1, "1 is no boolean"),
        ("boolean_t", "true", '"true" is no boolean'),
        ("integer_t", True, "true is no integer"),
        ("integer_t", "7", '"7" is no integer'),
        ("integer_t", 7.0, "7.0 is an integer written as a fraction"),
        ("integer_t", 7.5, "7.5 is no integer"),
        ("integer_t", float("nan"), "is a number that JSON doesn't have"),
        ("long_t", 1 << 63, "doesn't fit 64 bits"),
        ("long_t", -(1 << 70), "doesn't fit 64 bits"),
        ("timestamp_t", -(1 << 63) - 1, "doesn't fit 64 bits"),
        ("timestamp_t", "now", '"now" is no integer (timestamp_t)'),
        ("float_t", True, "true is no number"),
        ("float_t", float("-inf"), "is a number that JSON doesn't have"),
        ("string_t", 7, "7 is no string"),
        ("string_t", {}, "an object is no string"),
        ("string_t", [], "an array is no string"),
        ("string_t", b"x", "a bytes is no string"),
        ("string_t", "\ud800", "is no UTF-8: it holds a broken character"),
        ("json_t", 1 << 64, "doesn't fit 64 bits"),
        ("json_t", {1}, "a set is nothing that JSON has"),
        ("port_t", 70000, "70000 is more than 65535"),
        ("port_t", -1, "-1 is less than 0"),
        ("port_t", "443", '"443" is no integer (port_t)'),
        ("ip_t", "example", '"example" is no ip_t'),
        ("ip_t", "1" * 41, "has 41 characters, more than 40 (ip_t)"),
        ("mac_t", "02:00", '"02:00" is no mac_t'),
        ("uuid_t", "x", '"x" is no uuid_t'),
        ("datetime_t", "٢026-01-01T00:00:00Z", r'"\u0662026-01-01T00:00:00Z" is no datetime_t'),
        ("email_t", "word", '"word" is no email_t'),
    ],
)  # fmt: skip
def test_datatype_refuses(name: str, value: Any, message: str) -> None:
    assert fault(name, value) == message


def test_datatype_limits_the_length_by_version_and_type() -> None:
    """Check the limit that all strings had up to 1.3, also those with a type of their own."""
    for name, longest in (("message", 65535), ("raw_data", 65535)):
        for version, is_limited in (("1.1.0", True), ("1.3.0", True), ("1.4.0", False)):
            table = schema.load(version).class_of(4001)
            assert table is not None
            kind = table.attributes[name].type
            assert kind is not None
            assert kind.fault("x" * longest) is None
            assert (kind.fault("x" * (longest + 1)) is not None) == is_limited
    host = schema.load("1.1.0").object_of("network_endpoint").attributes["hostname"].type
    assert host is not None
    assert host.fault("a" * 65536) == "has 65536 characters, more than 65535 (hostname_t)"


LONG = {
    "ip_t": "::%" + " " * 3_000_000 + "\nx",
    "email_t": "a@" + "a." * 1_000_000 + "!",
    "datetime_t": "2026-01-01T00:00:00." + "1" * 1_000_000 + "x",
    "uuid_t": "0" * 1_000_000,
    "bytestring_t": "A" * 1_000_000 + "!",
}


@pytest.mark.parametrize("name", LONG)
def test_datatype_pattern_is_fast_on_long_texts(name: str) -> None:
    """Check long texts: the test would not end if the time grew as the square."""
    assert fault(name, LONG[name]) is not None
