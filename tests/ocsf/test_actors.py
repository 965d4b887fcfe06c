from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.process import Container, Process
from tests.conformance.corpus import CONTAINED, CONTEXT, PROCESSES, RECORDS
from tests.ocsf.test_attempts import told


def event_by(process: Process | None, name: str = "tcp4", mapper: Mapper | None = None) -> Any:
    attempt = replace(Attempt.of(RECORDS[name]), process=process)
    return told(attempt, mapper or Mapper(CONTEXT))


def test_all_that_is_known_of_a_process_is_told() -> None:
    event = event_by(PROCESSES["all of it"])
    container = {
        "uid": "3f4e0c2c9d1a",
        "name": "sandbox-sb1",
        "runtime": "containerd",
        "image": {"uid": "sha256:77af4d6b9913", "name": "registry.example/sandbox:1.2"},
    }
    bash = {"name": "bash", "pid": 4200, "path": "/usr/bin/bash"}
    regular = {"type_id": 1, "type": "Regular File", "is_deleted": False}
    assert event["actor"]["process"] == {
        "name": "curl",
        "pid": 4242,
        "path": "/usr/bin/curl",
        "cmd_line": "curl https://example.com/",
        "working_directory": "/home/agent",
        "created_time": 1_767_225_599_000,
        "file": {"name": "curl", "path": "/usr/bin/curl", **regular},
        "user": {"name": "agent", "uid": "1000"},
        "parent_process": {
            **bash, "file": {"name": "bash", "path": "/usr/bin/bash", **regular},
        },
        "ancestry": [bash, {"name": "agent", "pid": 4100, "path": "/opt/agent/bin/agent"}],
        "namespace_pid": 42,
        "container": container,
    }  # fmt: skip
    assert event["actor"]["user"]["name"] == "agent"
    assert event["metadata"]["profiles"] == [
        "container", "host", "network_proxy", "security_control",
    ]  # fmt: skip
    assert [each["value"] for each in event["observables"] if "process" in each["name"]] == [
        "curl", "4242", "curl https://example.com/", "/usr/bin/curl",
    ]  # fmt: skip


def test_a_process_is_called_by_its_program_and_not_as_it_calls_itself() -> None:
    liar = Process(pid=7, name="systemd", path="/home/agent/implant")
    event = event_by(liar)
    assert event["actor"]["process"]["name"] == "implant"
    assert event["message"].startswith("implant[7] (uid 1000) in sandbox sb1 tried")
    assert event_by(Process(pid=7, name="systemd"))["actor"]["process"]["name"] == "systemd"
    assert event_by(Process(pid=7))["message"].startswith("process [7] (uid 1000)")


def test_nobody_is_named_where_nobody_is_known() -> None:
    assert "actor" not in event_by(None, "tcp without a user")
    assert event_by(None)["actor"] == {"user": {"uid": "1000", "groups": [{"uid": "1000"}]}}


def test_the_socket_has_the_user_that_the_kernel_says_not_that_of_the_process() -> None:
    event = event_by(PROCESSES["another user"])
    assert event["actor"]["user"] == {"uid": "1000", "groups": [{"uid": "1000"}]}
    assert event["actor"]["process"]["user"] == {"name": "root", "uid": "0"}


@pytest.mark.parametrize("name", ["a directory for a program", "a name"])
def test_what_is_no_file_is_told_as_none(name: str) -> None:
    assert "file" not in event_by(PROCESSES[name])["actor"]["process"]


def test_a_long_name_does_not_fill_the_sentence() -> None:
    message = event_by(PROCESSES["long"])["message"]
    assert message.startswith("y" * 63 + "…[4242] (uid 1000) in sandbox")
    assert event_by(PROCESSES["long"])["actor"]["process"]["cmd_line"] == "z" * 4096


def test_a_sandbox_that_is_a_container_says_so_at_its_end() -> None:
    out, came_in = (event_by(None, name, Mapper(CONTAINED)) for name in ("tcp4", "ingress"))
    assert out["src_endpoint"]["container"]["uid"] == "3f4e0c2c9d1a"
    assert "container" not in out["dst_endpoint"]
    assert came_in["dst_endpoint"]["container"]["uid"] == "3f4e0c2c9d1a"
    assert "container" in out["metadata"]["profiles"]


@pytest.mark.parametrize("container", [None, Container(), Container(image_uid="sha256:0")])
def test_a_container_without_a_name_is_none(container: Container | None) -> None:
    event = event_by(None, mapper=Mapper(replace(CONTEXT, container=container)))
    assert "container" not in event["src_endpoint"]
