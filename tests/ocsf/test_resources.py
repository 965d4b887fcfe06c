"""Sandbox, container, pod, tenant and cloud in events."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fence_state_events import FenceState, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import collection_gap, lifecycle
from ocsf_nft.ocsf.resources import resources_of
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.process import Container
from tests.conformance.corpus import CONTEXT, IDENTIFIED, NOW_NS, RECORDS, TIME_NS
from tests.conformance.incidents import FAN_OUTS, GOING_ON

if TYPE_CHECKING:
    from ocsf_nft.ocsf.event_base import Event

CLOUD = {
    "provider": "aws",
    "account": {"uid": "123456789012", "name": "agents"},
    "region": "eu-central-1",
    "zone": "eu-central-1a",
}
_POD_UID = "0b6f1b8e-7d1a-4f0e-9d53-5b5f3c2a9c11"


def events(context: Context) -> dict[str, Any]:
    """Return an event of each class about a sandbox, and one about the service."""
    mapper = Mapper(context)
    finding = mapper.finding(GOING_ON["tcp4, first"], processed_ns=NOW_NS)
    assert finding is not None
    made: dict[str, Event] = {
        "activity": mapper.network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS),
        "finding": finding,
        "scan": fan_out(context, next(iter(FAN_OUTS.values())), processed_ns=NOW_NS),
        "state": fence_state(
            context, sandbox="sb1", before=FenceState.ABSENT, after=FenceState.ACTIVE,
            time_ns=TIME_NS, tables=[], transport="nflog",
        ),
        "gap": collection_gap(
            context, sandbox="sb1", packets=1, since_ns=TIME_NS, until_ns=NOW_NS, reason="x",
            processed_ns=NOW_NS,
        ),
        "start": lifecycle(context, activity="start", time_ns=TIME_NS),
    }  # fmt: skip
    return {name: json.loads(each.to_json()) for name, each in made.items()}


def test_every_event_has_cloud_instance_tenant_and_environment() -> None:
    for event in events(IDENTIFIED).values():
        assert event["cloud"] == CLOUD
        assert event["device"]["instance_uid"] == "i-0abc"
        assert event["metadata"]["tenant_uid"] == "tenant-1"
        assert event["metadata"]["labels"] == ["gen_ai.agent.name=helper", "environment=production"]
        assert "cloud" in event["metadata"]["profiles"]


def test_events_without_an_identity_have_none() -> None:
    for event in events(CONTEXT).values():
        assert "cloud" not in event
        assert "instance_uid" not in event["device"]
        assert not event["metadata"].keys() & {"tenant_uid", "labels"}
        assert "cloud" not in event["metadata"].get("profiles", ())


def test_sandbox_without_a_tenant_has_that_of_the_host() -> None:
    event = events(replace(IDENTIFIED, tenant_uid=None))["activity"]
    assert event["metadata"]["tenant_uid"] == "tenant of the host"


def test_environment_of_a_sandbox_replaces_that_of_the_host() -> None:
    context = replace(IDENTIFIED, labels=("environment=test", "x=1"))
    mapper, attempt = Mapper(context), Attempt.of(RECORDS["tcp4"])
    for _ in range(4):  # of the model, then of a template
        event = json.loads(mapper.line(attempt, processed_ns=NOW_NS))
        assert event["metadata"]["labels"] == ["environment=test", "x=1"]


@pytest.mark.parametrize("name", ["activity", "finding", "scan", "state", "gap"])
def test_sandbox_is_a_tag_of_each_event_about_it(name: str) -> None:
    event = events(CONTEXT)[name]
    sandbox = event["unmapped"]["sandbox"]
    assert event["metadata"]["tags"] == [{"name": "sandbox", "value": sandbox}]
    assert "tags" not in at_version(event, "1.3.0")["metadata"]


def test_event_about_the_service_has_no_sandbox() -> None:
    event = events(IDENTIFIED)["start"]
    assert "tags" not in event["metadata"]
    assert "container" not in event["device"]


@pytest.mark.parametrize("name", ["state", "gap"])
def test_container_is_in_the_device_if_there_is_no_endpoint(name: str) -> None:
    event, activity = events(IDENTIFIED)[name], events(IDENTIFIED)["activity"]
    assert event["device"]["container"] == activity["src_endpoint"]["container"]
    assert "container" in event["metadata"]["profiles"]
    assert "container" not in activity["device"]


@pytest.mark.parametrize("name", ["finding", "scan"])
def test_finding_has_sandbox_container_and_pod_as_resources(name: str) -> None:
    event = events(IDENTIFIED)[name]
    sandbox, container, pod = event["resources"]
    assert sandbox == {
        "name": event["unmapped"]["sandbox"],
        "type": "sandbox",
        "labels": ["gen_ai.agent.name=helper", "environment=production"],
    }
    given = IDENTIFIED.container
    assert given is not None
    assert (container["uid"], container["name"]) == (given.uid, given.name)
    assert (container["type"], container["namespace"]) == ("container", "agents")
    assert "io.kubernetes.pod.name=agent-0" in container["labels"]
    assert pod == {"uid": given.pod_uid, "name": "agent-0", "type": "pod", "namespace": "agents"}


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (None, ["sandbox"]),
        (Container(runtime="docker"), ["sandbox"]),
        (Container(uid="c1", labels=("team=x",)), ["sandbox", "container"]),
        (Container(name="c", pod_uid=_POD_UID), ["sandbox", "container", "pod"]),
        (
            Container(name="c", labels=("io.kubernetes.pod.name=p",)),
            ["sandbox", "container", "pod"],
        ),
        (Container(name="c", labels=("io.kubernetes.pod.namespace=n",)), ["sandbox", "container"]),
    ],
)
def test_resources_are_those_that_are_known(
    container: Container | None, expected: list[str]
) -> None:
    found = resources_of(Context(container=container), "sb1")
    assert [each.type for each in found] == expected
