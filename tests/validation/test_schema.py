"""Tests of the tables of the published schema."""

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
