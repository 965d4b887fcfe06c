"""A day of attacks: the findings are exactly those of the attacks, and their events explain them.

The day runs once. Each test then compares the events with what the programs really did.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pytest

from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.versions import at_version
from tests.kernel import attack_day, attack_scripts
from tests.published_versions import PUBLISHED
from tests.queries.answers import ANSWERS, answer, database_of
from tests.queries.expected import at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from tests.kernel.attack_day import Attack, Day

    Event: TypeAlias = dict[str, Any]

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

_ATTACKED: Final = (
    "thief", "tunnel", "scanner", "altered", "flushed", "removed", "flood", "leak",
)  # fmt: skip
_SHORT: Final = {f"short-{8 + number}" for number in range(attack_day.SHORT_LIVED)}
#: Findings that are alerts: those of severity High or Critical.
_ALERTS: Final = {"thief", "tunnel", "scanner", "altered", "flushed", "removed"}
_TECHNIQUES: Final = {
    "thief": "T1552.005",
    "tunnel": "T1071.004",
    "scanner": "T1046",
    "altered": "T1562.004",
    "flushed": "T1562.004",
    "removed": "T1562.004",
}
#: Words of the advice for each finding, and its page of the runbook.
_ADVICE: Final = {
    "thief": ("no credentials were disclosed", "metadata-credentials"),
    "tunnel": ("Decode some names", "dns-tunnel"),
    "scanner": ("Search for the same program in other sandboxes", "scan"),
    "altered": ("Take CAP_NET_ADMIN from the sandbox", "policy-changed"),
    "flushed": ("Take CAP_NET_ADMIN from the sandbox", "policy-changed"),
    "removed": ("Install the fence again", "policy-removed"),
    "flood": ("should do this", "attempt"),
    "leak": ("check what was sent", "policy-permissive"),
}
#: Sandboxes of the events that each detection rule matches; the other rules match none.
_MATCHES: Final[dict[str, set[str | None]]] = {
    "cloud_metadata": {"thief"},
    "scan": {"scanner"},
    "dns_tunnel": {"tunnel"},
    "bypass_finding": {"flood"},
    "permissive_leak": {"leak"},
    "fence_tampering": {"altered", "flushed"},
    "fence_removed": {"removed"},
    "bypass_attempt": {"scanner", "flood", "worker", *_SHORT},
    "allowed_attempt": {"leak"},
    "dns_in_the_open": {"tunnel", "worker"},
    # Of the counters that were removed with the fence; the text names the sandbox.
    "collection_gap": {None},
}
#: Rules that match the creation of a finding.
_OF_FINDINGS: Final = tuple(_MATCHES)[:7]
_CAPTION: Final = re.compile(r"warning: \S+: is missing: \w+ \d+ is ")
_DETECTIONS: Final = Path(__file__).parents[2] / "detections/duckdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Facts that a reader learns from the events of one finding."""

    #: Who: the sandbox and its team, the user ids, and the programs by pid.
    sandbox: str
    team: str
    uids: frozenset[str]
    programs: dict[int, str]
    #: What: the situation, the technique, the result, and where to.
    code: str
    technique: str | None
    outcome: Any
    destinations: frozenset[tuple[str, int]]
    #: When: times in ms since the epoch, and whether it is over.
    first_ms: int
    last_ms: int
    is_over: bool
    how_much: int
    #: What to do: the advice, and the page of the runbook.
    what_to_do: str
    page: str


def answers(stages: list[Event]) -> Answers:
    """Return the facts in the events of a finding, and nothing that is known otherwise."""
    last = stages[-1]
    info, evidences = last["finding_info"], last.get("evidences", [])
    processes = [each["process"] for each in evidences if "process" in each]
    users = [at(each, "actor.user.uid") or at(each, "process.user.uid") for each in evidences]
    (label,) = last["resources"][0]["labels"]
    technique = info["attacks"][0] if "attacks" in info else {}
    return Answers(
        sandbox=last["resources"][0]["name"],
        team=label.removeprefix("team="),
        uids=frozenset(filter(None, users)),
        programs={each["pid"]: at(each, "file.path") or each["name"] for each in processes},
        code=last["metadata"]["event_code"],
        technique=technique.get("sub_technique", technique.get("technique", {})).get("uid"),
        outcome=last.get("disposition", last["action"]),
        destinations=frozenset(
            (each["dst_endpoint"]["ip"], each["dst_endpoint"]["port"])
            for each in evidences
            if "dst_endpoint" in each
        ),
        first_ms=info["first_seen_time"],
        last_ms=info["last_seen_time"],
        is_over=last["status_detail"].startswith("Inactive since "),
        how_much=last["count"],
        what_to_do=last["remediation"]["desc"],
        page=last["remediation"]["references"][0],
    )


@pytest.fixture(scope="module")
def day() -> Iterator[Day]:
    with pytest.MonkeyPatch.context() as patch, attack_day.lived(patch) as found:
        yield found


@pytest.fixture(scope="module")
def events(day: Day) -> list[Event]:
    return day.events


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def source(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def database(day: Day, source: str) -> duckdb.DuckDBPyConnection:
    """Return a database with the views of the documentation."""
    return database_of(day.folder, source)


def _findings(events: list[Event]) -> dict[tuple[str | None, str], list[Event]]:
    """Return the events of each finding, by its sandbox and code."""
    found = defaultdict(list)
    for event in events:
        if event["class_uid"] == 2004:
            found[_sandbox(event), event["metadata"]["event_code"]].append(event)
    return found


def _sandbox(event: Event) -> str | None:
    sandbox: str | None = at(event, "unmapped.sandbox")
    return sandbox


def _attack(day: Day, sandbox: str) -> Attack:
    (found,) = (each for each in day.attacks if each.sandbox == sandbox)
    return found


def _stages(day: Day, events: list[Event], sandbox: str) -> list[Event]:
    return _findings(events)[sandbox, _attack(day, sandbox).code]


def _expected_destinations(sandbox: str) -> set[tuple[str, int]]:
    internet = attack_scripts.INTERNET
    number = attack_day.SCANNERS * attack_scripts.PORTS_OF_ONE
    scanned = range(attack_scripts.FIRST_PORT, attack_scripts.FIRST_PORT + number)
    return {
        "thief": {(attack_scripts.METADATA, 80)},
        "tunnel": {(internet, 53)},
        "scanner": {(internet, port) for port in scanned},
        "flood": {(internet, 443)},
        "leak": {(internet, 8443)},
    }.get(sandbox, set())


def test_findings_are_exactly_those_of_the_attacks(day: Day, events: list[Event]) -> None:
    found = _findings(events)
    assert found.keys() == {(each.sandbox, each.code) for each in day.attacks}
    assert {each.sandbox for each in day.attacks} == set(_ATTACKED)
    for stages in found.values():
        assert len({each["finding_info"]["uid"] for each in stages}) == 1
        names = [each["activity_name"] for each in stages]
        assert names == ["Create", *["Update"] * (len(stages) - 1)]
        assert {each["status"] for each in stages} == {"New"}


def test_nothing_else_is_an_alert(events: list[Event]) -> None:
    alerts = [event for event in events if event.get("is_alert")]
    assert {event["class_uid"] for event in alerts} == {2004}
    assert {_sandbox(event) for event in alerts} == _ALERTS


@pytest.mark.parametrize("sandbox", _ATTACKED)
def test_finding_answers_the_questions_of_an_analyst(
    day: Day, events: list[Event], sandbox: str
) -> None:
    attack = _attack(day, sandbox)
    found = answers(_stages(day, events, sandbox))
    is_of_packets = sandbox not in {"altered", "flushed", "removed"}
    # Who
    assert (found.sandbox, found.team) == (sandbox, sandbox)
    assert found.programs == dict.fromkeys((each.pid for each in attack.done), attack.program)
    assert found.uids == {str(attack.uid)}
    # What
    assert (found.code, found.technique) == (attack.code, _TECHNIQUES.get(sandbox))
    expected = {"leak": "Logged"}.get(sandbox, "Blocked" if is_of_packets else "Observed")
    assert found.outcome == expected
    # A scan has a sample of its destinations beside those of its processes.
    assert found.destinations <= _expected_destinations(sandbox)
    assert bool(found.destinations) == is_of_packets
    # When: the programs cannot know the exact times of their packets.
    begun_ms = min(each.begun for each in attack.done) // 1_000_000
    ended_ms = max(each.ended for each in attack.done) // 1_000_000
    assert begun_ms - 1000 <= found.first_ms <= ended_ms + 1000
    assert found.first_ms <= found.last_ms
    assert found.is_over
    if is_of_packets:
        assert found.last_ms >= ended_ms - 1000
    # How much
    assert found.how_much == sum(each.packets for each in attack.done)
    # What to do
    words, page = _ADVICE[sandbox]
    assert words in found.what_to_do
    assert sandbox in found.what_to_do
    assert found.page == f"docs/how-to/runbook/{page}.md"


@pytest.mark.parametrize("sandbox", ["thief", "tunnel", "flood", "leak"])
def test_events_of_a_sole_sender_name_it(day: Day, events: list[Event], sandbox: str) -> None:
    (done,) = _attack(day, sandbox).done
    unnamed = 0
    for event in events:
        if event["class_uid"] not in {2004, 4001} or _sandbox(event) != sandbox:
            continue
        (by,) = (each["data"] for each in event["enrichments"] if each["type"] == "attribution")
        candidates = {each["pid"] for each in by.get("processes", [])}
        assert candidates <= {done.pid}
        pid = at(event, "actor.process.pid")
        if pid is None and event["class_uid"] == 4001:
            unnamed += event["count"]
        else:
            assert pid == done.pid, event["message"]
            assert by["confidence"] in {"High", "Medium"}
    # The sender of packets that came while the counters were read may be uncertain. A permissive
    # fence drops no packet of which the kernel could report the sender.
    assert unnamed <= (1 if sandbox == "leak" else 0.1 * done.packets)


def test_findings_and_their_events_refer_to_each_other(events: list[Event]) -> None:
    of_uid = {event["metadata"]["uid"]: event for event in events}
    for (_, code), stages in _findings(events).items():
        for each in stages:
            info = each["finding_info"]
            related = [of_uid[one["uid"]] for one in info["related_events"]]
            assert related
            assert [one["type_uid"] for one in info["related_events"]] == [
                one["type_uid"] for one in related
            ]
            assert {_sandbox(one) for one in related} == {_sandbox(each)}
            # The flows of a scan have their own correlation.
            if code != "scan-finding":
                assert each["metadata"]["correlation_uid"] == info["uid"]
                assert {one["metadata"]["correlation_uid"] for one in related} == {info["uid"]}


def test_names_of_the_tunnel_are_in_its_events(day: Day, events: list[Event]) -> None:
    last = _stages(day, events, "tunnel")[-1]
    found = last["unmapped"]["dns"]
    assert found["domain"] == attack_scripts.DOMAIN
    # The kernel logs a limited number of packets.
    assert 0.9 * attack_scripts.NAMES < found["long_names"] <= attack_scripts.NAMES
    shown = {each["query"]["hostname"] for each in last["evidences"] if "query" in each}
    assert shown <= set(attack_scripts.tunnel_names())
    assert len(shown) == 10


def test_all_packets_are_counted_once(day: Day, events: list[Event]) -> None:
    reported: dict[str | None, Counter[str]] = defaultdict(Counter)
    for event in events:
        if event["class_uid"] == 4001:
            permits = ":permissive" if event["status_code"] == "permissive" else ""
            rule = f"{event['firewall_rule']['name']}{permits}"
            reported[_sandbox(event)][rule] += event["count"]
    for sandbox, counted in day.counted.items():
        assert reported[sandbox] == counted
    for sandbox, total in day.final.items():
        assert reported[sandbox].total() == total
    for sandbox, packets in day.ordinary.items():
        # The kernel of the worker's sandbox sends packets of IPv6 by itself.
        owned = sum(
            event["count"]
            for event in events
            if event["class_uid"] == 4001
            and _sandbox(event) == sandbox
            and event["metadata"]["event_code"] != "kernel-traffic"
        )
        assert owned == packets


def test_ordinary_life_is_informational(events: list[Event]) -> None:
    ordinary = {"worker", *_SHORT}
    of_packets = {"egress-blocked", "dns-blocked", "kernel-traffic"}
    ends: Counter[str] = Counter()
    for event in events:
        if _sandbox(event) not in ordinary:
            continue
        code = event["metadata"]["event_code"]
        if code not in of_packets:
            assert event["severity"] == "Informational"
            ends[code] += 1
    number = attack_day.SHORT_LIVED
    assert ends == {
        "sandbox-added": number + 1,
        "sandbox-ended": number // 2,
        "sandbox-released": number // 2 + 1,
    }


@pytest.mark.parametrize("version", PUBLISHED)
def test_no_event_has_a_schema_fault(
    events: list[Event], judge: Callable[[Any, str], list[str]], version: str
) -> None:
    converted = [at_version(copy.deepcopy(event), version) for event in events]
    assert [fault for event in converted for fault in judge(event, version)] == []
    faults = {fault for event in converted for fault in judge(lean(event), version)}
    # The lean form has no captions.
    assert {each for each in faults if not _CAPTION.match(each)} == set()


def test_lean_sink_has_each_event(day: Day, events: list[Event]) -> None:
    assert day.lean_events == [lean(copy.deepcopy(event)) for event in events]


@pytest.mark.parametrize("title", ANSWERS)
def test_query_of_the_documentation_returns_the_right_rows(
    database: duckdb.DuckDBPyConnection, events: list[Event], title: str
) -> None:
    expect, order = ANSWERS[title]
    found = answer(database, title)
    assert Counter(found) == Counter(expect(events))
    assert found == sorted(found, key=order)


def test_queries_return_what_happened(database: duckdb.DuckDBPyConnection, day: Day) -> None:
    packets = {
        each.sandbox: sum(one.packets for one in each.done) for each in day.attacks
    } | day.ordinary
    opened = answer(database, "Open findings")
    assert Counter((row[1], row[5]) for row in opened) == Counter(
        (each.sandbox, packets[each.sandbox]) for each in day.attacks
    )
    attempts: Counter[str] = Counter()
    for sandbox, destination, *_, sent, _, _, _ in answer(
        database, "Attempts by sandbox and destination"
    ):
        if destination in {attack_scripts.INTERNET, attack_scripts.METADATA}:
            attempts[sandbox] += sent
    refused = set(packets) - {"altered", "flushed", "removed", "leak"}
    assert attempts == {sandbox: packets[sandbox] for sandbox in refused}
    programs = {
        (program, who): sent
        for program, who, sent, _ in answer(database, "Programs and users")
        if program != "not known"
    }
    sent_by = {
        **{
            (each.program, str(each.uid)): packets[each.sandbox]
            for each in day.attacks
            if each.sandbox in refused
        },
        (str(day.program("worker")), "1006"): packets["worker"],
        (str(day.program("short")), "1007"): attack_day.SHORT_LIVED,
    }
    assert programs.keys() == sent_by.keys()
    for who, number in sent_by.items():
        assert 0.9 * number <= programs[who] <= number
    (metadata,) = answer(database, "First attempt to reach a cloud metadata service")
    assert metadata[1] == "thief"
    of_incidents = answer(database, "Findings with their attempts")
    assert sorted(row[1] for row in of_incidents) == sorted(
        packets[each] for each in ("thief", "tunnel", "flood", "leak")
    )
    assert all(row[1] == row[2] for row in of_incidents)
    assert {row[0] for row in answer(database, "Anything missing")} == {"Records Dropped"}
    assert answer(database, "Fences that are not active") == []
    assert answer(database, "Events that were received twice") == []


def test_detection_rules_match_the_attacks(day: Day, source: str) -> None:
    database = database_of(day.folder, source)
    for name in (source, "rules"):
        database.execute((_DETECTIONS / f"{name}.sql").read_text(encoding="utf-8"))
    rules = {path.stem for path in (_DETECTIONS.parent / "sigma").glob("*.yml")}
    matched = {rule: _matched_sandboxes(database, rule) for rule in rules}
    assert {rule: set(found) for rule, found in matched.items() if found} == _MATCHES
    for rule in _OF_FINDINGS:
        assert len(matched[rule]) == len(_MATCHES[rule]), "one match for each finding"


def _matched_sandboxes(database: duckdb.DuckDBPyConnection, rule: str) -> list[str | None]:
    found = database.view(rule).select(duckdb.SQLExpression("unmapped->>'sandbox'"))
    return [row[0] for row in found.fetchall()]
