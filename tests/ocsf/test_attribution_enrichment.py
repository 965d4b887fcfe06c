"""Each event says how it is known who did it, or why it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.accounting.merge_attribution import together
from ocsf_nft.attempt import Attempt
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
from tests.conformance.streaks import streak
from tests.ocsf.test_attempts import told
from tests.ocsf.test_templates import assert_told, has_template

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution


def by(attribution: Attribution | None, name: str = "tcp4", packets: int = 1) -> Any:
    return told(replace(window(RECORDS[name], packets), attribution=attribution))


def enrichment(event: Any) -> Any:
    (only,) = event["enrichments"]
    return only


def test_nothing_is_said_where_nobody_looked() -> None:
    assert "enrichments" not in by(None)


def test_a_process_is_told_with_how_it_is_known() -> None:
    event = by(done_by(PROCESSES["all of it"]))
    assert event["actor"]["process"]["pid"] == 4242
    assert enrichment(event) == {
        "name": "actor.process",
        "value": "4242",
        "type": "attribution",
        "provider": "ocsf-nft",
        "data": {
            "rung": "capture",
            "confidence": "High",
            "reason": "the kernel named the process that made the call",
        },
    }


def test_where_no_process_is_known_it_says_why() -> None:
    event = by(BY_THE_USER)
    assert event["actor"] == {
        "user": {"uid": "1000", "name": "agent", "groups": [{"uid": "1000", "name": "agents"}]}
    }
    assert enrichment(event)["value"] == "unknown"
    assert enrichment(event)["data"] == {
        "rung": "user",
        "confidence": "Low",
        "reason": "this kernel can't be asked, and the socket was gone",
    }
    assert event["message"] == by(None)["message"]


def test_how_sure_it_is_is_left_out_where_nothing_is_said() -> None:
    event = by(ATTRIBUTIONS["by nobody"], "tcp without a user")
    assert "actor" not in event
    assert enrichment(event)["data"] == {"rung": "none", "reason": "the record names no user"}


def test_of_several_the_actor_is_their_user_and_the_enrichment_names_each() -> None:
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


def test_of_several_in_one_window_the_actor_is_the_one_that_is_named() -> None:
    event = by(SEVERAL_IN_ONE_WINDOW, packets=28)
    assert event["actor"]["process"]["pid"] == 4242
    assert enrichment(event)["value"] == "4242"
    data = enrichment(event)["data"]
    assert [(each["pid"], each["calls"]) for each in data["processes"]] == [
        (4242, 20),
        (4300, 6),
    ]
    assert data["unnamed"] == 2


def test_a_finding_says_what_its_attempts_say() -> None:
    mine = done_by(PROCESSES["all of it"])
    found = replace(Attempt.of(RECORDS["tcp4"]), streak=streak(attribution=mine))
    finding = Mapper(CONTEXT).finding(found, processed_ns=NOW_NS)
    assert finding is not None
    event = json.loads(finding.to_json())
    assert event["enrichments"] == by(mine)["enrichments"]
    assert event["unmapped"] == {"sandbox": "sb1", "unit": "agent@1.service"}


def test_a_finding_names_no_process_that_made_its_latest_attempt_alone() -> None:
    whole = streak(3, 40, 2, together(ONE_OF_SEVERAL, done_by(PROCESSES["all of it"])))
    found = replace(
        Attempt.of(RECORDS["tcp4"]), streak=whole, attribution=done_by(PROCESSES["all of it"])
    )
    finding = Mapper(CONTEXT).finding(found, processed_ns=NOW_NS)
    assert finding is not None
    event = json.loads(finding.to_json())
    assert event["message"].startswith("one or more of 3 processes of uid 1000 in sandbox sb1")
    assert "process" not in event["actor"]
    assert "process" not in event["evidences"][0]
    assert event["unmapped"] == {"sandbox": "sb1"}


def test_no_name_and_no_reason_is_told_as_it_is() -> None:
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


_TRIED = "tried TCP to 203.0.113.7:443 (https) directly"


@pytest.mark.parametrize(
    ("attribution", "packets", "sentence"),
    [
        (ONE_OF_SEVERAL, 1, f"one or more of 3 processes of uid 1000 in sandbox sb1 {_TRIED};"),
        (
            replace(ONE_OF_SEVERAL, unnamed=2),
            1,
            f"one or more of 5 processes of uid 1000 in sandbox sb1 {_TRIED};",
        ),
        (
            SEVERAL_IN_ONE_WINDOW,
            28,
            f"curl[4242] and 3 more (uid 1000) in sandbox sb1 {_TRIED}, 28 times;",
        ),
        (
            replace(SEVERAL_IN_ONE_WINDOW, process=None),
            28,
            f"4 processes of uid 1000 in sandbox sb1 {_TRIED}, 28 times;",
        ),
        (
            ATTRIBUTIONS["one that it may have been"],
            1,
            f"uid 1000 in sandbox sb1 {_TRIED};",
        ),
    ],
)
def test_the_sentence_names_who_did_it_or_says_how_many_there_were(
    attribution: Attribution, packets: int, sentence: str
) -> None:
    assert by(attribution, packets=packets)["message"].startswith(sentence)


def test_the_sentence_says_how_many_there_were_without_a_user_too() -> None:
    event = by(ONE_OF_SEVERAL, "tcp without a user")
    assert event["message"].startswith("one or more of 3 processes in sandbox sb1 tried")
    alone = by(done_by(Process(pid=7, name="x")), "tcp without a user")
    assert alone["message"].startswith("x[7] in sandbox sb1 tried")


def test_of_flows_that_are_told_together_the_sentence_says_who_as_well() -> None:
    merged = ATTEMPTS["many of egress, in full"]
    by_one = told(replace(merged, attribution=done_by(PROCESSES["all of it"])))
    by_many = told(replace(merged, attribution=replace(SEVERAL_IN_ONE_WINDOW, process=None)))
    assert by_one["message"].startswith("curl[4242] (uid 1000) in sandbox sb1 sent 934465 packets")
    assert by_many["message"].startswith("4 processes of uid 1000 in sandbox sb1 sent 934465")


def test_who_did_it_is_a_part_of_the_shape_and_who_of_several_of_none() -> None:
    mapper, attempt = Mapper(CONTEXT), Attempt.of(RECORDS["tcp4"])
    by_user = replace(attempt, attribution=BY_THE_USER)
    assert assert_told(mapper, attempt)
    assert not has_template(mapper, by_user)
    assert assert_told(mapper, by_user)
    for by in (
        replace(BY_THE_USER, sureness="medium"),
        replace(BY_THE_USER, rung="none"),
        replace(BY_THE_USER, reason="another"),
        replace(BY_THE_USER, user_name="another", group_name=None),
        done_by(PROCESSES["a pid"]),
        done_by(PROCESSES["all of it"]),
    ):
        assert not has_template(mapper, replace(attempt, attribution=by))
        assert assert_told(mapper, replace(attempt, attribution=by))
    for by in (
        ONE_OF_SEVERAL,
        replace(BY_THE_USER, unnamed=1),
        replace(BY_THE_USER, reason="x" * 20_000),
        replace(BY_THE_USER, user_name="x" * 20_000),
        replace(BY_THE_USER, group_name="x" * 20_000),
    ):
        assert not assert_told(mapper, replace(attempt, attribution=by))
