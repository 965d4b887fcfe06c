"""jq queries of docs/reference/events.md, run on events of every kind."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.queries import expected, siem_events
from tests.queries.expected import at, grouped, host, packets, refused
from tests.queries.page import queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queries.expected import Event

QUERIES: Final = queries("sh")
#: jq counts in doubles, as the page explains.
EVENTS: Final = [
    event for event in siem_events.unique_events() if event.get("count", 0) < siem_events.EXACT
]
_EACH_ONCE: Final = "Each event once"


@pytest.fixture(scope="module", params=siem_events.VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("jq")
    siem_events.write(found, EVENTS, request.param)
    assert not _run(found, _EACH_ONCE)
    return found


def _run(folder: Path, title: str) -> list[Any]:
    done = subprocess.run(
        ["sh", "-euc", QUERIES[title]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _destinations() -> list[Any]:
    def where_to(event: Event) -> Any:
        end = event.get("dst_endpoint", {})
        return event["unmapped"]["prefix"], end.get("ip"), end.get("port")

    return [
        {"prefix": prefix, "ip": ip, "port": port, "packets": packets(events)}
        for (prefix, ip, port), events in grouped(refused(EVENTS), where_to).items()
    ]


def _programs() -> list[Any]:
    def who(event: Event) -> Any:
        return at(event, "actor.process.name"), at(event, "actor.user.uid")

    return [
        {"program": program, "uid": uid, "packets": packets(events)}
        for (program, uid), events in grouped(refused(EVENTS), who).items()
    ]


def _hours() -> list[Any]:
    def hour(event: Event) -> str:
        time = dt.datetime.fromtimestamp(event["time"] // 1000, dt.UTC)
        return f"{time:%Y-%m-%dT%H:00:00Z}"

    return [{name: packets(events) for name, events in grouped(refused(EVENTS), hour).items()}]


def _reach() -> list[Any]:
    reaches = filter(expected.reached_for_metadata, expected.of_class(EVENTS, 4001))
    first = min(reaches, key=lambda one: (one["start_time"], one["metadata"]["uid"]))
    uid = first["metadata"]["uid"]
    return [{"start_time": first["start_time"], "message": first["message"], "uid": uid}]


def _open() -> list[Any]:
    return [
        {
            "finding": one["finding_info"]["uid"],
            "severity_id": one["severity_id"],
            "count": one["count"],
            "message": one["message"],
        }
        for one in expected.open_findings(EVENTS)
    ]


def _related() -> list[Any]:
    by_uid = {one["metadata"]["uid"]: one for one in EVENTS}
    found = []
    for one in expected.findings(EVENTS):
        uids = [each["uid"] for each in one["finding_info"].get("related_events", ())]
        events = [
            {"uid": uid, "count": by_uid[uid]["count"], "message": by_uid[uid]["message"]}
            for uid in uids
        ]
        found.append({"finding": one["finding_info"]["uid"], "events": events})
    return found


def _gaps() -> list[Any]:
    return [
        {
            "activity_name": one["activity_name"],
            "start_time": one["start_time"],
            "end_time": one["end_time"],
            "count": one.get("count"),
            "message": one["message"],
        }
        for one in expected.gaps(EVENTS)
    ]


def _as_texts(answer: list[Any]) -> list[str]:
    return sorted(json.dumps(each, sort_keys=True) for each in answer)


ANSWERS: Final[dict[str, Callable[[], list[Any]]]] = {
    "Packets by sandbox, rule and destination": _destinations,
    "Packets by program and user": _programs,
    "Packets by hour": _hours,
    "First attempt to reach a cloud metadata service": _reach,
    "Open findings": _open,
    "Findings with their latest attempts": _related,
    "Anything missing": _gaps,
}
_FENCES: Final = "Fences that are not active"


def test_each_query_has_a_test() -> None:
    assert QUERIES.keys() == ANSWERS.keys() | {_EACH_ONCE, _FENCES}


@pytest.mark.parametrize("title", ANSWERS)
def test_query_returns_the_expected_rows(folder: Path, title: str) -> None:
    answer = _run(folder, title)
    assert _as_texts(answer) == _as_texts(ANSWERS[title]())
    if "packets" in answer[0]:
        most_first = [each["packets"] for each in answer]
        assert most_first == sorted(most_first, reverse=True)


def test_duplicate_events_are_removed(folder: Path) -> None:
    lines = (folder / "once.jsonl").read_text().splitlines()
    uids = [json.loads(line)["metadata"]["uid"] for line in lines]
    assert sorted(uids) == sorted(one["metadata"]["uid"] for one in EVENTS)


def test_query_returns_each_inactive_fence(folder: Path) -> None:
    answer = _run(folder, _FENCES)
    fallen = [
        {"host": host(one), "sandbox": one["unmapped"]["sandbox"], "time": one["time"]}
        for one in expected.inactive_fences(EVENTS)
    ]
    # Of two events within a millisecond, the query may return either that is not active.
    messages = {one["message"] for one in EVENTS if one.get("state") not in {None, "Enabled"}}
    assert {each.pop("message") for each in answer} <= messages
    assert _as_texts(answer) == _as_texts(fallen)
