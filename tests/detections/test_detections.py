"""Detection rules, and their queries run on events of every kind."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pytest
from sigma.rule import SigmaStatus

from ocsf_nft.ocsf import finding_parts
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.versions import STORED
from tests.detections import conversion
from tests.detections.samples import SAMPLES, code_of
from tests.detections.samples import events as sample_events
from tests.queries.expected import at
from tests.queries.siem_events import write_parquet

if TYPE_CHECKING:
    from sigma.rule import SigmaRule

RULES: Final = conversion.rules()
EVENTS: Final = sample_events()
_UIDS: Final = {name: event["metadata"]["uid"] for name, event in EVENTS.items()}
_SPLUNK: Final = re.compile(r'[a-z_.]+(?:=(?:"[a-z0-9:-]+"|[0-9]+)|>=[0-9]+| IN \([^()]+\))')
_TERM: Final = r"(?:[a-z0-9]|\\-)+"
_LUCENE: Final = re.compile(rf"[a-z_.]+:(?:>=)?{_TERM}|\([a-z_.]+:\({_TERM}(?: OR {_TERM})*\)\)")
_ATTACK: Final = re.compile(r"[a-z-]+|t[0-9]{4}(\.[0-9]{3})?")


def _selection(rule: SigmaRule) -> dict[str, Any]:
    detection = rule.to_dict()["detection"]
    assert detection["condition"] == "selection"
    found: dict[str, Any] = detection["selection"]
    return found


def is_selected(event: dict[str, Any], rule: SigmaRule) -> bool:
    """Compare an event with a rule, without a converter."""
    for name, expected in _selection(rule).items():
        path, _, modifier = name.partition("|")
        value = at(event, path)
        if modifier == "gte":
            if value is None or value < expected:
                return False
        elif value not in (expected if isinstance(expected, list) else [expected]):
            return False
    return True


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    folder = tmp_path_factory.mktemp("detections")
    if request.param == "jsonl":
        lines = (json.dumps(event) + "\n" for event in EVENTS.values())
        (folder / "events.jsonl").write_text("".join(lines))
    else:
        events = (json.dumps(event).encode() for event in EVENTS.values())
        asyncio.run(write_parquet(folder, events, STORED))
    connection = duckdb.connect()
    connection.execute(f"SET file_search_path = '{folder}'")
    connection.execute((conversion.FOLDER / f"duckdb/{request.param}.sql").read_text())
    connection.execute((conversion.FOLDER / "duckdb/rules.sql").read_text())
    return connection


def _matching(database: duckdb.DuckDBPyConnection, name: str) -> set[str]:
    return {uid for (uid,) in database.sql(f'FROM "{name}" SELECT metadata.uid').fetchall()}


@pytest.mark.parametrize("name", RULES)
def test_rule_matches_its_sample_and_not_the_other_one(
    database: duckdb.DuckDBPyConnection, name: str
) -> None:
    matching, other = SAMPLES[name]
    found = _matching(database, name)
    assert _UIDS[matching] in found
    assert _UIDS[other] not in found


@pytest.mark.parametrize("name", RULES)
def test_rule_matches_the_events_of_its_situations(
    database: duckdb.DuckDBPyConnection, name: str
) -> None:
    expected = {
        event["metadata"]["uid"] for event in EVENTS.values() if is_selected(event, RULES[name])
    }
    assert _matching(database, name) == expected


def test_event_is_in_a_view_once(database: duckdb.DuckDBPyConnection) -> None:
    assert database.execute("SELECT count(*) FROM events").fetchone() == (len(set(_UIDS.values())),)


def test_each_rule_has_samples_and_each_finding_a_rule() -> None:
    assert RULES.keys() == SAMPLES.keys()
    codes = {code_of(event) for event in EVENTS.values() if event["class_uid"] == 2004}
    covered = {
        code for rule in RULES.values() for code in _codes(_selection(rule)["metadata.event_code"])
    }
    assert codes <= covered


def _covered() -> set[str]:
    """Return the codes of the rules."""
    return {
        code for rule in RULES.values() for code in _codes(_selection(rule)["metadata.event_code"])
    }


def test_each_severe_event_about_the_protection_has_a_rule_or_a_finding() -> None:
    severe = {
        code_of(event)
        for event in EVENTS.values()
        if event["class_uid"] in {5019, 6002} and event["severity_id"] >= 4
    }
    # A fault of a sandbox is High, and one of a sink Medium.
    assert {*severe, EventCode.FAULT} - _covered() == {
        EventCode.FENCE_BYPASSED,
        EventCode.FENCE_REMOVED_BY_OTHER,
        EventCode.SURROUNDINGS_CHANGED,
    }


def test_each_attempt_has_a_rule() -> None:
    """Each attempt to get credentials is a finding. Kernels send packets without a program."""
    attempts = {
        code
        for code in EventCode
        if code.class_uid == 4001 and not code.startswith(("firewall-", "cloud-metadata-"))
    }
    assert attempts - _covered() == {EventCode.KERNEL_TRAFFIC}


def _codes(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_rules_have_their_own_ids() -> None:
    assert len({rule.id for rule in RULES.values()}) == len(RULES)


@pytest.mark.parametrize("name", RULES)
def test_rule_has_what_an_analyst_needs(name: str) -> None:
    rule = RULES[name]
    assert isinstance(rule.id, uuid.UUID)
    assert rule.status is SigmaStatus.EXPERIMENTAL
    assert rule.level is not None
    assert rule.description
    assert rule.falsepositives
    assert rule.references
    for page in rule.references:
        assert (conversion.FOLDER.parent / page).is_file()
    for tag in rule.tags:
        assert tag.namespace in {"attack", "detection"}
        assert tag.namespace == "detection" or _ATTACK.fullmatch(tag.name)


@pytest.mark.parametrize("name", RULES)
def test_rule_names_the_pages_of_the_runbook_that_its_findings_name(name: str) -> None:
    codes = _codes(_selection(RULES[name])["metadata.event_code"])
    pages = {
        f"docs/how-to/runbook/{kind.page}.md"
        for kind in vars(finding_parts).values()
        if isinstance(kind, finding_parts.FindingKind) and kind.code in codes
    }
    assert pages <= set(RULES[name].references)


@pytest.mark.parametrize("name", RULES)
def test_rule_and_its_event_claim_the_same_technique(name: str) -> None:
    """A rule for a situation that has a golden event claims no technique that the event lacks."""
    techniques = {tag.name.upper() for tag in RULES[name].tags if re.match("t[0-9]", tag.name)}
    event = EVENTS[SAMPLES[name].matching]
    if not techniques:
        return
    claimed = {
        attack.get("sub_technique", attack["technique"])["uid"] for attack in event["attacks"]
    }
    assert techniques <= claimed


@pytest.mark.parametrize("name", RULES)
def test_splunk_search_has_the_fields_of_the_events(name: str) -> None:
    query = conversion.splunk_query(RULES[name])
    search, _, shown = query.partition(" | table ")
    assert shown
    conditions = _SPLUNK.findall(search)
    assert " ".join(conditions) == search
    names = {re.split("[=>]| IN ", each)[0] for each in conditions}
    assert names == {"sourcetype", *(each.partition("|")[0] for each in _selection(RULES[name]))}


@pytest.mark.parametrize("name", RULES)
def test_opensearch_query_has_the_fields_of_the_events(name: str) -> None:
    query = conversion.opensearch_query(RULES[name])
    terms = query.split(" AND ")
    assert all(_LUCENE.fullmatch(each) for each in terms), query
    names = [each.lstrip("(").partition(":")[0] for each in terms]
    assert names == [each.partition("|")[0] for each in _selection(RULES[name])]


def test_generated_files_are_current() -> None:
    for name, text in conversion.files().items():
        assert (conversion.FOLDER / name).read_text() == text, f"{name}: run `make detections`"
    # tests/detections/test_splunk_addon.py has those of the add-on.
    generated = {
        path.name
        for path in conversion.FOLDER.rglob("*")
        if path.is_file() and "splunk" not in path.parts
    }
    by_hand = {"README.md", "network_sessions.kql", *(f"{name}.yml" for name in RULES)}
    made = {name.rpartition("/")[2] for name in conversion.files() if "splunk" not in name}
    assert generated == by_hand | made
