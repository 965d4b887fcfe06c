"""Actors of events, and how they were found: the method, or why no process is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.flows.incidents import merge
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.process import Attribution, Container, Process, Seen
from tests.conformance.attributed import (
    ATTRIBUTIONS,
    BY_THE_USER,
    HOSTILE,
    ONE_OF_SEVERAL,
    POD,
    PROCESSES,
    SEVERAL_IN_ONE_WINDOW,
    SHA256,
    done_by,
)
from tests.conformance.corpus import ATTEMPTS, CONTAINED, CONTEXT, NOW_NS, RECORDS, window
from tests.conformance.incidents import incident
from tests.ocsf.test_attempts import rendered
from tests.ocsf.test_templates import assert_rendered, has_template


def event_by(process: Process | None, name: str = "tcp4", mapper: Mapper | None = None) -> Any:
    attempt = replace(
        Attempt.of(RECORDS[name]), attribution=None if process is None else done_by(process)
    )
    return rendered(attempt, mapper or Mapper(CONTEXT))


def test_event_has_all_known_data_of_a_process() -> None:
    event = event_by(PROCESSES["all of it"])
    container = {
        "uid": "3f4e0c2c9d1a",
        "name": "sandbox-sb1",
        "runtime": "containerd",
        "image": {"uid": "sha256:77af4d6b9913", "name": "registry.example/sandbox:1.2"},
        "pod_uuid": POD,
    }
    bash = {"name": "bash", "pid": 4200, "path": "/usr/bin/bash"}
    hashes = [{"algorithm_id": 3, "algorithm": "SHA-256", "value": SHA256}]
    user = {"name": "agent", "uid": "1000", "groups": [{"uid": "1000", "name": "agents"}]}
    regular = {"type_id": 1, "type": "Regular File", "is_deleted": False}
    assert event["actor"]["process"] == {
        "name": "curl",
        "pid": 4242,
        "ptid": 4243,
        "path": "/usr/bin/curl",
        "cmd_line": "curl https://example.com/",
        "working_directory": "/home/agent",
        "created_time": 1_767_225_599_000,
        "file": {"name": "curl", "path": "/usr/bin/curl", **regular, "hashes": hashes},
        "user": user,
        "parent_process": {
            **bash, "file": {"name": "bash", "path": "/usr/bin/bash", **regular},
        },
        "ancestry": [bash, {"name": "agent", "pid": 4100, "path": "/opt/agent/bin/agent"}],
        "namespace_pid": 42,
        "container": container,
    }  # fmt: skip
    assert event["actor"]["user"] == user
    assert event["unmapped"]["unit"] == "agent@1.service"
    assert event["metadata"]["profiles"] == [
        "container", "host", "network_proxy", "security_control",
    ]  # fmt: skip
    assert [each["value"] for each in event["observables"] if "process" in each["name"]] == [
        "curl", "4242", "curl https://example.com/", "/usr/bin/curl", SHA256,
    ]  # fmt: skip


def test_name_of_a_process_is_that_of_its_program() -> None:
    liar = Process(pid=7, name="systemd", path="/home/agent/implant")
    event = event_by(liar)
    assert event["actor"]["process"]["name"] == "implant"
    assert event["message"].startswith("Blocked TCP connection from implant[7] (uid 1000) in")
    assert event_by(Process(pid=7, name="systemd"))["actor"]["process"]["name"] == "systemd"
    assert event_by(Process(pid=7))["message"].startswith(
        "Blocked TCP connection from process [7] (uid 1000)"
    )


def test_event_without_attribution_names_no_process() -> None:
    assert "actor" not in event_by(None, "tcp without a user")
    assert event_by(None)["actor"] == {"user": {"uid": "1000", "groups": [{"uid": "1000"}]}}


def test_user_of_the_socket_is_from_the_record_not_from_the_process() -> None:
    event = event_by(PROCESSES["another user"])
    assert event["actor"]["user"] == {"uid": "1000", "groups": [{"uid": "1000"}]}
    assert event["actor"]["process"]["user"] == {"name": "root", "uid": "0"}


def test_group_of_the_socket_is_from_the_record() -> None:
    event = event_by(PROCESSES["another group"])
    assert event["actor"]["user"] == {"uid": "1000", "groups": [{"uid": "1000"}]}
    assert event["actor"]["process"]["user"]["groups"] == [{"uid": "0", "name": "root"}]


NAMED = Attribution(method="user", reason="why", user_name="agent", group_name="agents")


def user_by(attribution: Attribution, name: str = "tcp4", mapper: Mapper | None = None) -> Any:
    attempt = replace(Attempt.of(RECORDS[name]), attribution=attribution)
    return rendered(attempt, mapper or Mapper(CONTEXT)).get("actor", {}).get("user")


def test_the_user_has_the_name_that_the_host_has_for_it() -> None:
    user = {"uid": "1000", "name": "agent", "groups": [{"uid": "1000", "name": "agents"}]}
    assert user_by(NAMED) == user
    for name in ("a pid", "another user", "a group without a user"):
        by = replace(done_by(PROCESSES[name]), user_name="agent", group_name="agents")
        assert user_by(by) == user


def test_the_names_that_the_process_runs_under_come_first() -> None:
    by = replace(done_by(PROCESSES["all of it"]), user_name="x", group_name="y")
    assert user_by(by)["name"] == "agent"
    assert user_by(by)["groups"] == [{"uid": "1000", "name": "agents"}]


def test_renamed_user_has_its_new_name() -> None:
    mapper = Mapper(CONTEXT)
    others = (NAMED, replace(NAMED, user_name="x"), replace(NAMED, group_name=None))
    found = [user_by(by, mapper=mapper) for by in (*others, *others)]
    assert [each["name"] for each in found] == ["agent", "x", "agent"] * 2
    assert [each["groups"][0].get("name") for each in found] == ["agents", "agents", None] * 2


def test_record_without_user_has_no_user_name() -> None:
    assert user_by(NAMED, "tcp without a user") is None


def test_names_of_users_are_made_printable() -> None:
    user = user_by(replace(NAMED, user_name=HOSTILE, group_name=HOSTILE))
    assert user["name"].isprintable()
    assert user["groups"][0]["name"] == user["name"] == visible(HOSTILE)


@pytest.mark.parametrize(
    ("name", "called"), [("in memory", "memfd:a/b/"), ("in memory, without a name", "memfd:")]
)
def test_a_program_in_memory_alone_is_a_file_with_a_name_and_a_path(name: str, called: str) -> None:
    event = event_by(PROCESSES[name])
    process = event["actor"]["process"]
    assert process["name"] == process["file"]["name"] == called
    assert process["path"] == process["file"]["path"] == called
    assert event["message"].startswith(
        f"Blocked TCP connection from {called}[4242] (uid 1000) in sandbox sb1 to "
    )


@pytest.mark.parametrize(
    ("name", "unmapped"),
    [
        ("a unit", {"unit": "user@1000.service"}),
        ("an unknown container in a pod", {"pod_uid": POD}),
        ("a pod that no API server knows", {"pod_uid": POD.replace("-", "")}),
        ("a directory for a program", {"sha256": SHA256}),
        ("a hash alone", {"sha256": SHA256.upper()}),
        ("a hash that is none", {"sha256": SHA256[1:]}),
        ("a deleted program", {}),
    ],
)
def test_data_without_process_attribute_is_in_unmapped(name: str, unmapped: dict[str, str]) -> None:
    event, unattributed = event_by(PROCESSES[name]), event_by(None)
    assert event["unmapped"] == unattributed["unmapped"] | unmapped


@pytest.mark.parametrize("name", ["a directory for a program", "a name"])
def test_program_that_is_no_file_has_no_file(name: str) -> None:
    assert "file" not in event_by(PROCESSES[name])["actor"]["process"]


def test_a_long_name_does_not_fill_the_sentence() -> None:
    message = event_by(PROCESSES["long"])["message"]
    assert message.startswith(f"Blocked TCP connection from {'y' * 63}…[4242] (uid 1000) in ")
    assert event_by(PROCESSES["long"])["actor"]["process"]["cmd_line"] == "z" * 4096


def test_endpoint_of_a_container_sandbox_has_the_container() -> None:
    out, came_in = (event_by(None, name, Mapper(CONTAINED)) for name in ("tcp4", "ingress"))
    assert out["src_endpoint"]["container"]["uid"] == "3f4e0c2c9d1a"
    assert "container" not in out["dst_endpoint"]
    assert came_in["dst_endpoint"]["container"]["uid"] == "3f4e0c2c9d1a"
    assert "container" in out["metadata"]["profiles"]


@pytest.mark.parametrize("container", [None, Container(), Container(image_uid="sha256:0")])
def test_a_container_without_a_name_is_none(container: Container | None) -> None:
    event = event_by(None, mapper=Mapper(replace(CONTEXT, container=container)))
    assert "container" not in event["src_endpoint"]


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
