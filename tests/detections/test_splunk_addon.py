"""Add-on of Splunk: its files by Splunk's rules for them, and its fields in our events."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tarfile
import tomllib
import xml.etree.ElementTree as ET
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.ocsf.enums import Action, Direction, Disposition, Severity, Status
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.versions import STORED, VERSIONS, at_version
from tests.delivery import sample_events
from tests.detections import conversion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ADDON: Final = conversion.FOLDER / "splunk/TA-ocsf-nft"
_ROOT: Final = conversion.FOLDER.parent
_SOURCE_TYPE: Final = "ocsf:ocsf-nft"
#: Stanzas and keys of each file, as in Splunk's "Configuration file reference" and, for
#: default.meta, "Set permissions for knowledge objects".
_KEYS: Final = {
    "default/app.conf": {
        "install": "is_configured", "package": "id|check_for_updates", "ui": "is_visible|label",
        "launcher": "author|description|version", "id": "name|version",
    },
    "default/eventtypes.conf": {"ocsf_nft_[a-z]+": "search"},
    "default/limits.conf": {"spath": "extraction_cutoff"},
    "default/props.conf": {
        _SOURCE_TYPE: "SHOULD_LINEMERGE|LINE_BREAKER|TRUNCATE|CHARSET|TIME_PREFIX|TIME_FORMAT|"
        "MAX_TIMESTAMP_LOOKAHEAD|KV_MODE|(?:FIELDALIAS|EVAL)-[a-z_]+",
    },
    "default/savedsearches.conf": {
        "ocsf-nft: .+": r"description|search|dispatch\.(?:earliest|latest)_time",
    },
    "default/tags.conf": {"eventtype=ocsf_nft_[a-z]+": "[a-z]+"},
    "metadata/default.meta": {"|eventtypes|props|tags": "access|export"},
}  # fmt: skip
#: Fields of Splunk's Common Information Model 6.1 in the data models of the tags.
_CIM: Final = frozenset({
    # Network Traffic
    "action", "app", "bytes", "dest", "dest_ip", "dest_mac", "dest_port", "direction",
    "dvc", "packets", "process_id", "protocol_version", "rule", "src", "src_ip",
    "src_mac", "src_port", "transport", "user", "vendor_product",
    # Alerts, Intrusion Detection
    "category", "description", "id", "ids_type", "mitre_technique_id", "severity",
    "signature", "signature_id", "subject", "type",
    # Change
    "change_type", "object", "object_category", "result", "status",
})  # fmt: skip
_TAGS: Final = {
    "ocsf_nft_traffic": {"network", "communicate"},
    "ocsf_nft_alert": {"alert"},
    "ocsf_nft_intrusion": {"ids", "attack"},
    "ocsf_nft_change": {"change", "network"},
}
#: Words of searches and of eval expressions that are no fields.
_WORDS: Final = frozenset({
    "AND", "OR", "NOT", "IN", "AS", "BY", "true", "false", "null", "case", "coalesce", "if", "in",
    "match", "fillnull", "mvindex", "value", "count", "dc", "dedup", "sort", "stats", "sum",
    "table", "timechart",
})  # fmt: skip
#: Fields that Splunk makes.
_OF_SPLUNK: Final = frozenset({"_time", "sourcetype"})


@cache
def _conf(name: str) -> dict[str, dict[str, str]]:
    """Parse a file of the add-on; raise an error for a stanza or a key that is there twice."""
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=("#",), default_section="", strict=True
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (_ADDON / name).read_text(encoding="utf-8")
    # configparser reads no empty name of a stanza, which default.meta has.
    parser.read_string(text.replace("[]", "[everything]"))
    return {each: dict(parser[each]) for each in parser.sections()}


@cache
def _fields() -> frozenset[str]:
    """Return the fields that Splunk extracts from events; an item of a list has braces."""
    return frozenset(
        path for message in sample_events.messages(STORED) for path, _ in _values(message.event())
    )


def _values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _values(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each, f"{path}{{}}")
    else:
        yield path, value


def _unknown(expression: str, known: frozenset[str] = frozenset()) -> set[str]:
    """Return the words of a search, or of an eval expression, that are neither fields nor known."""
    without_texts = re.sub(r'"[^"]*"', "", expression)
    made = frozenset(re.findall(r"\bAS (\w+)", without_texts))
    words = set(re.findall(r"[A-Za-z_][\w.{}]*", without_texts))
    return words - _fields() - _WORDS - _OF_SPLUNK - made - known


def _derived() -> dict[str, str]:
    """Return the fields that props.conf makes, each with its expression."""
    found = {}
    for key, value in _conf("default/props.conf")[_SOURCE_TYPE].items():
        kind, _, name = key.partition("-")
        if kind == "EVAL":
            found[name] = value
        elif kind == "FIELDALIAS":
            alias = re.fullmatch(r'(?:"([^"]+)"|(\w+)) AS (\w+)', value)
            assert alias is not None, value
            assert alias[3] == name
            found[name] = alias[1] or alias[2]
    return found


def _xml(name: str) -> ET.Element:
    return ET.parse(_ADDON / "default/data/ui" / name).getroot()  # noqa: S314 - our own file


def _cim(event: dict[str, Any]) -> dict[str, Any]:
    """Return the derived fields of an event, with Splunk's functions by their documentation."""
    fields: dict[str, list[Any]] = {}
    for path, value in _values(event):
        fields.setdefault(path, []).append(value)

    def field(name: str) -> Any:
        found = fields.get(name, [None])
        return found[0] if len(found) == 1 else found

    functions = {
        "case": lambda *each: next((y for x, y in zip(each[::2], each[1::2]) if x), None),  # noqa: B905 - pairs
        "coalesce": lambda *each: next((x for x in each if x is not None), None),
        "if_": lambda x, y, z: y if x else z,
        "in_": lambda x, *each: x in each,
        "match": lambda x, pattern: x is not None and re.search(pattern, x) is not None,
        "mvindex": lambda x, index: x[index] if isinstance(x, list) else x,
        "null": lambda: None,
        "true": lambda: True,
        "field": field,
    }

    def result(expression: str) -> Any:
        if expression in _fields():
            return field(expression)
        parts = re.split(r'("[^"]*")', expression)
        for number in range(0, len(parts), 2):
            part = re.sub(r"\b(if|in)\(", r"\1_(", parts[number])
            part = part.replace(" AND ", " and ").replace(" OR ", " or ")
            part = re.sub(r"'([^']+)'", r"field('\1')", part)
            parts[number] = re.sub(
                r"(?<![\w'.])([a-z]+(?:_[a-z]+)*)(?=[=,)])(?!')",
                r"field('\1')",
                part,
            )
        return eval("".join(parts), functions)  # noqa: S307 - our own file

    found = {name: result(expression) for name, expression in _derived().items()}
    return {name: value for name, value in found.items() if value is not None}


def _searches() -> Iterator[str]:
    view = _xml("views/ocsf_nft_events.xml")
    yield from (query.text or "" for query in view.iter("query"))
    yield from (each["search"] for each in _conf("default/eventtypes.conf").values())


def test_each_file_of_the_add_on_is_known() -> None:
    found = {str(path.relative_to(_ADDON)) for path in _ADDON.rglob("*") if path.is_file()}
    views = {"default/data/ui/nav/default.xml", "default/data/ui/views/ocsf_nft_events.xml"}
    assert found == {*_KEYS, *views, "README.md"}


@pytest.mark.parametrize("name", _KEYS)
def test_file_has_known_stanzas_and_keys(name: str) -> None:
    found = _conf(name)
    assert found
    for stanza, keys in found.items():
        plain = stanza.replace("everything", "") if name.endswith(".meta") else stanza
        (known,) = [key for each, key in _KEYS[name].items() if re.fullmatch(each, plain)]
        assert keys
        for key, value in keys.items():
            assert re.fullmatch(known, key), key
            assert value
            assert not value.endswith("\\")  # continues in the next line


def test_id_and_version_are_those_of_the_package() -> None:
    found = _conf("default/app.conf")
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert found["id"]["version"] == found["launcher"]["version"] == project["version"]
    assert found["id"]["name"] == found["package"]["id"] == _ADDON.name


def test_props_find_the_time_of_each_event_and_cut_none_off() -> None:
    props = _conf("default/props.conf")[_SOURCE_TYPE]
    assert props["TIME_FORMAT"] == "%s%3N"  # seconds and milliseconds since the epoch
    cutoff = int(_conf("default/limits.conf")["spath"]["extraction_cutoff"])
    for message in sample_events.messages(STORED):
        line = message.line.decode()
        prefix = re.search(props["TIME_PREFIX"], line)
        assert prefix is not None
        digits = line[prefix.end() :][: int(props["MAX_TIMESTAMP_LOOKAHEAD"])]
        assert int(digits) == message.event()["time"]
        assert not re.search(props["LINE_BREAKER"], line)
        assert 2 * len(message.line) < min(cutoff, int(props["TRUNCATE"]))


def test_derived_fields_are_those_of_cim_and_made_of_fields_of_events() -> None:
    found = _derived()
    assert found.keys() == _CIM
    for name, expression in found.items():
        assert _unknown(expression) == set(), name
        # Splunk reads a bare name with a dot as a concatenation.
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", expression)
        assert expression in _fields() or "." not in bare, name
        for left, right in ("()", "''", '""'):
            assert expression.count(left) == expression.count(right)


@pytest.mark.parametrize("shorten", [lambda event: event, lean], ids=["full", "lean"])
def test_derived_fields_have_the_values_of_cim(shorten: Callable[[Any], Any]) -> None:
    severities = {int(each): each.caption.lower() for each in Severity}
    for message in sample_events.messages(STORED):
        event = shorten(message.event())
        found, code = _cim(event), event["metadata"]["event_code"]
        assert found["severity"] == severities[event["severity_id"]]
        assert found["signature_id"] == code
        assert found.get("dvc") == event.get("device", {}).get("hostname")
        if event["class_uid"] == 4001:
            if code.endswith(("-blocked", "-rejected", "-dropped")):
                assert found["action"] == "blocked"
            elif code.endswith("-allowed"):
                assert found["action"] == "allowed"
            endpoint = event.get("dst_endpoint", {})
            assert found.get("dest_ip") == endpoint.get("ip")
            assert found.get("dest_port") == endpoint.get("port")
            assert found["vendor_product"] == event["metadata"]["product"]["name"]
        if event["class_uid"] == 2004:
            assert (found["type"], found["ids_type"]) == ("alert", "network")
            assert "dest" in found or "dvc" not in found
            assert (found["id"], found["subject"]) == (
                event["finding_info"]["uid"],
                event["finding_info"]["title"],
            )
        if event["class_uid"] == 2004 and "evidences" in event:
            endpoint = event["evidences"][0].get("dst_endpoint", {})
            assert found.get("dest_ip") == endpoint.get("ip")
        if event["class_uid"] == 5019:
            expected = {"fence-active": "created", "fence-removed-by-other": "deleted"}
            assert found["action"] == expected.get(code, "modified")
            assert found["status"] in {"success", "failure"}
            assert found["object"] == event["unmapped"]["sandbox"]


def test_numbers_in_props_are_the_values_of_ocsf() -> None:
    assert [each.caption.lower() for each in Severity] == re.findall(
        r'==\d, "(\w+)"', _derived()["severity"]
    )
    assert list(map(int, Severity)) == [1, 2, 3, 4, 5]
    assert (Action.ALLOWED, Action.DENIED, Disposition.LOGGED) == (1, 2, 17)
    assert (Direction.INBOUND, Direction.OUTBOUND) == (1, 2)
    assert (Status.SUCCESS, Status.FAILURE) == (1, 2)


def test_searches_have_fields_of_events_and_of_cim() -> None:
    found = list(_searches())
    assert len(found) == 15
    for search in found:
        assert search.startswith(f'sourcetype="{_SOURCE_TYPE}" class_uid=')
        assert _unknown(search, _CIM) == set(), search


def test_sums_of_packets_leave_no_packet_of_a_fence_out_and_count_no_other() -> None:
    """The command stats leaves out an event without one of the fields after BY."""
    sums = [each for each in _searches() if "sum(count)" in each]
    assert len(sums) == 5
    for search in sums:
        assert 'firewall_rule.type="nftables"' in search or 'status_code="permissive"' in search
        by = re.search(r"stats .* BY ([\w. ]+?) \|", search)
        if by is not None:
            assert f'| fillnull value="-" {by[1]} |' in search


@pytest.mark.parametrize("version", VERSIONS)
def test_searches_for_alerts_find_those_of_each_version(version: str) -> None:
    """Before 1.4.0, ``is_alert`` is not an attribute."""
    alerts = [each for each in _searches() if "is_alert" in each]
    assert len(alerts) == 2
    for search in alerts:
        assert " class_uid=2004 (is_alert=true OR (NOT is_alert=* severity_id>=4))" in search
    for message in sample_events.messages(STORED):
        event = message.event()
        if event["class_uid"] == 2004:
            old = at_version(message.event(), version)
            is_found = old.get("is_alert", old["severity_id"] >= Severity.HIGH)
            assert is_found == event["is_alert"]


def test_searches_and_props_have_codes_of_events() -> None:
    texts = [*_searches(), *_derived().values()]
    found = {code for text in texts for code in re.findall(r'"([a-z]+(?:-[a-z]+)+)"', text)}
    assert found <= set(EventCode)
    assert {EventCode.SCAN_FINDING, EventCode.FENCE_ACTIVE} <= found


def test_event_types_have_the_tags_of_their_data_models() -> None:
    tags = _conf("default/tags.conf")
    assert {
        name: set(tags[f"eventtype={name}"]) for name in _conf("default/eventtypes.conf")
    } == _TAGS
    assert len(tags) == len(_TAGS)
    assert {value for each in tags.values() for value in each.values()} == {"enabled"}


def test_saved_searches_are_the_rules() -> None:
    found = _conf("default/savedsearches.conf")
    expected = {
        f"ocsf-nft: {rule.title}": conversion.splunk_query(rule)
        for rule in conversion.rules().values()
    }
    assert {name: each["search"] for name, each in found.items()} == expected


def test_dashboard_has_panels_with_searches_and_is_in_the_menu() -> None:
    view = _xml("views/ocsf_nft_events.xml")
    assert (view.tag, view.get("version")) == ("form", "1.1")
    tokens = {each.get("token") for each in view.iter("input")}
    panels = list(view.iter("panel"))
    assert len(panels) == 11
    for panel in panels:
        assert panel.findtext("title")
        (search,) = panel.iter("search")
        for name in ("earliest", "latest"):
            assert re.fullmatch(r"\$(\w+)\.(\w+)\$", search.findtext(name) or "")
            assert (search.findtext(name) or "").strip("$").split(".") == [*tokens, name]
    menu = _xml("nav/default.xml")
    names = [each.get("name") for each in menu.iter("view")]
    assert names[0] == "ocsf_nft_events"


def test_two_archives_are_equal_and_have_the_add_on(tmp_path: Path) -> None:
    page = (_ROOT / "docs/how-to/splunk.md").read_text()
    (command,) = re.findall(r"^tar .*", page, re.MULTILINE)
    made = []
    for number in range(2):
        folder = tmp_path / str(number)
        # Copies have other times.
        shutil.copytree(_ADDON, folder / "detections/splunk/TA-ocsf-nft", copy_function=shutil.copy)
        subprocess.run(["bash", "-ec", command], cwd=folder, check=True)
        made.append((folder / "TA-ocsf-nft.tgz").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0/TA-ocsf-nft.tgz") as archive:
        names = {name for name in archive.getnames() if archive.getmember(name).isfile()}
    assert names == {
        str(path.relative_to(_ADDON.parent)) for path in _ADDON.rglob("*") if path.is_file()
    }
