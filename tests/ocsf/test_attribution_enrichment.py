"""Attribution enrichment of events: the method, or the reason why no process is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.flows.incidents import merge
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.process import Process, Seen
from tests.conformance.attributed import (
    ATTRIBUTIONS,
    BY_THE_USER,
    HOSTILE,
    ONE_OF_SEVERAL,
    PROCESSES,
    SEVERAL_IN_ONE_WINDOW,
    done_by,
)
from tests.conformance.corpus import ATTEMPTS, CONTEXT, NOW_NS, RECORDS, window
from tests.conformance.incidents import incident
from tests.ocsf.test_attempts import rendered
from tests.ocsf.test_templates import assert_rendered, has_template

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution


def by(attribution: Attribution | None, name: str = "tcp4", packets: int = 1) -> Any:
    return rendered(replace(window(RECORDS[name], packets), attribution=attribution))


def enrichment(event: Any) -> Any:
    (only,) = event["enrichments"]
    return only


def test_event_without_attribution_has_no_enrichment() -> None:
    assert "enrichments" not in by(None)


def test_enrichment_of_a_process_has_the_attribution_method() -> None:
    event = by(done_by(PROCESSES["all of it"]))
    assert event["actor"]["process"]["pid"] == 4242
    assert enrichment(event) == {
        "name": "actor.process",
        "value": "4242",
        "type": "attribution",
        "provider": "ocsf-nft",
        "data": {
            "method": "capture",
            "confidence": "High",
            "reason": "the kernel named the process that made the call",
        },
    }


def test_enrichment_without_a_process_has_the_reason() -> None:
    event = by(BY_THE_USER)
    assert event["actor"] == {
        "user": {"uid": "1000", "name": "agent", "groups": [{"uid": "1000", "name": "agents"}]}
    }
    assert enrichment(event)["value"] == "unknown"
    assert enrichment(event)["data"] == {
        "method": "user",
        "confidence": "Low",
        "reason": "this kernel can't be asked, and the socket was closed",
    }
    assert event["message"] == by(None)["message"]


def test_unknown_confidence_is_left_out() -> None:
    event = by(ATTRIBUTIONS["unknown"], "tcp without a user")
    assert "actor" not in event
    assert enrichment(event)["data"] == {"method": "none", "reason": "the record names no user"}


def test_actor_of_several_processes_is_their_user() -> None:
    event = by(ONE_OF_SEVERAL)
    assert event["actor"].keys() == {"user"}
    assert enrichment(event)["value"] == "unknown"
    data = enrichment(event)["data"]
    assert data["processes"] == [
        {
            "pid": 4200,
            "name": "bash",
            "path": "/usr/bin/bash",
            "cmd_line": "bash -c 'curl & wait'",
        },
        {
            "pid": 4242,
            "name": "curl",
            "path": "/usr/bin/curl",
            "cmd_line": "curl https://example.com/",
        },
        {"pid": 4300, "name": "worker"},
    ]
    assert data["unnamed"] == 0


def test_actor_of_several_in_one_window_is_the_named_process() -> None:
    event = by(SEVERAL_IN_ONE_WINDOW, packets=28)
    assert event["actor"]["process"]["pid"] == 4242
    assert enrichment(event)["value"] == "4242"
    data = enrichment(event)["data"]
    assert [(each["pid"], each["calls"]) for each in data["processes"]] == [
        (4242, 20),
        (4300, 6),
    ]
    assert data["unnamed"] == 2


def test_finding_has_the_attribution_of_its_attempts() -> None:
    mine = done_by(PROCESSES["all of it"])
    found = replace(Attempt.of(RECORDS["tcp4"]), incident=incident(attribution=mine))
    finding = Mapper(CONTEXT).finding(found, processed_ns=NOW_NS)
    assert finding is not None
    event = json.loads(finding.to_json())
    assert event["enrichments"] == by(mine)["enrichments"]
    assert event["unmapped"] == {"sandbox": "sb1", "unit": "agent@1.service"}


def test_finding_does_not_name_the_process_of_its_latest_attempt_alone() -> None:
    whole = incident(3, 40, 2, merge(ONE_OF_SEVERAL, done_by(PROCESSES["all of it"])))
    found = replace(
        Attempt.of(RECORDS["tcp4"]), incident=whole, attribution=done_by(PROCESSES["all of it"])
    )
    finding = Mapper(CONTEXT).finding(found, processed_ns=NOW_NS)
    assert finding is not None
    event = json.loads(finding.to_json())
    assert " from one or more of 3 processes of uid 1000 in sandbox sb1 to " in event["message"]
    assert "process" not in event["actor"]
    assert "process" not in event["evidences"][0]
    assert event["unmapped"] == {"sandbox": "sb1"}


def test_names_and_reasons_are_made_printable() -> None:
    hostile = replace(
        ONE_OF_SEVERAL, reason=HOSTILE, seen=(Seen(process=PROCESSES["hostile"], calls=3),)
    )
    line = Mapper(CONTEXT).line(
        replace(Attempt.of(RECORDS["tcp4"]), attribution=hostile), processed_ns=NOW_NS
    )
    assert line.decode().isprintable()
    data = enrichment(json.loads(line))["data"]
    for text in (data["reason"], *data["processes"][0].values()):
        assert str(text).isprintable()


_BLOCKED = "Blocked TCP connection"


@pytest.mark.parametrize(
    ("attribution", "packets", "sentence"),
    [
        (
            ONE_OF_SEVERAL,
            1,
            f"{_BLOCKED} from one or more of 3 processes of uid 1000 in sandbox sb1 to ",
        ),
        (
            replace(ONE_OF_SEVERAL, unnamed=2),
            1,
            f"{_BLOCKED} from one or more of 5 processes of uid 1000 in sandbox sb1 to ",
        ),
        (
            SEVERAL_IN_ONE_WINDOW,
            28,
            "Blocked 28 TCP packets from curl[4242] and 3 other processes (uid 1000) in ",
        ),
        (
            replace(SEVERAL_IN_ONE_WINDOW, process=None),
            28,
            "Blocked 28 TCP packets from 4 processes of uid 1000 in sandbox sb1 to ",
        ),
        (
            ATTRIBUTIONS["one that it may have been"],
            1,
            f"{_BLOCKED} from uid 1000 in sandbox sb1 to ",
        ),
    ],
)
def test_message_names_the_process_or_the_number_of_processes(
    attribution: Attribution, packets: int, sentence: str
) -> None:
    assert by(attribution, packets=packets)["message"].startswith(sentence)


def test_message_without_a_user_has_the_number_of_processes() -> None:
    event = by(ONE_OF_SEVERAL, "tcp without a user")
    assert event["message"].startswith(
        f"{_BLOCKED} from one or more of 3 processes in sandbox sb1 to "
    )
    alone = by(done_by(Process(pid=7, name="x")), "tcp without a user")
    assert alone["message"].startswith(f"{_BLOCKED} from x[7] in sandbox sb1 to ")


def test_message_of_aggregated_flows_names_the_process() -> None:
    merged = ATTEMPTS["many of egress, in full"]
    by_one = rendered(replace(merged, attribution=done_by(PROCESSES["all of it"])))
    by_many = rendered(replace(merged, attribution=replace(SEVERAL_IN_ONE_WINDOW, process=None)))
    assert by_one["message"].endswith("other flows from curl[4242] (uid 1000) in sandbox sb1")
    assert by_many["message"].endswith("other flows from 4 processes of uid 1000 in sandbox sb1")


def test_attribution_is_part_of_the_shape_but_several_processes_have_no_template() -> None:
    mapper, attempt = Mapper(CONTEXT), Attempt.of(RECORDS["tcp4"])
    by_user = replace(attempt, attribution=BY_THE_USER)
    assert assert_rendered(mapper, attempt)
    assert not has_template(mapper, by_user)
    assert assert_rendered(mapper, by_user)
    for by in (
        replace(BY_THE_USER, confidence="medium"),
        replace(BY_THE_USER, method="none"),
        replace(BY_THE_USER, reason="another"),
        replace(BY_THE_USER, user_name="another", group_name=None),
        done_by(PROCESSES["a pid"]),
        done_by(PROCESSES["all of it"]),
    ):
        assert not has_template(mapper, replace(attempt, attribution=by))
        assert assert_rendered(mapper, replace(attempt, attribution=by))
    for by in (
        ONE_OF_SEVERAL,
        replace(BY_THE_USER, unnamed=1),
        replace(BY_THE_USER, reason="x" * 20_000),
    ):
        assert not assert_rendered(mapper, replace(attempt, attribution=by))
