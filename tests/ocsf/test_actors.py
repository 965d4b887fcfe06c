from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.process import Attribution, Container, Process
from tests.conformance.attributed import HOSTILE, POD, PROCESSES, SHA256, done_by
from tests.conformance.corpus import CONTAINED, CONTEXT, RECORDS
from tests.ocsf.test_attempts import rendered


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
