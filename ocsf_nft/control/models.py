"""Answers of the control API, and the check of its requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from ocsf_nft.config import SandboxConfig
from ocsf_nft.config.sentence import sentence_of
from ocsf_nft.control.container_facts import ContainerFacts
from ocsf_nft.control.etags import etag_of
from ocsf_nft.control.problem_types import MalformedError
from ocsf_nft.errors import UsageError
from ocsf_nft.flow import Mode
from ocsf_nft.service.sandbox_view import Origin, State
from ocsf_nft.utc_text import utc_text
from ocsf_nft.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.control.engine import Engine
    from ocsf_nft.service import sandbox_view
    from ocsf_nft.service.status import Status


class Answer(BaseModel):
    """Base of all answers; the string below a key describes it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, defer_build=True)


class SandboxView(Answer):
    """State of a sandbox."""

    name: str
    """Name of the sandbox."""
    origin: Origin
    """Origin: the configuration file or this API."""
    state: State
    """State of its fence; waiting: its namespace does not exist yet."""
    mode: Mode
    """Whether the fence refuses packets, or only reports those that it would refuse."""
    fault: str | None
    """Cause of the state, or why a host name is not resolved; null if there is none."""
    guard: str | None
    """Devices with the guard on the host, or why there is none; null if it is off."""
    since: str
    """Time when the sandbox was added (RFC 3339)."""
    policy: dict[str, Any]
    """Keys of the policy as they were given, without defaults."""
    etag: str
    """Version of the policy, in quotes: the value for If-Match."""


class SandboxList(Answer):
    """All sandboxes of a service, sorted by their names."""

    sandboxes: list[SandboxView]
    """States of the sandboxes."""


class PutAnswer(Answer):
    """Result of adding or changing a sandbox."""

    changes: list[str]
    """Differences to the policy before, such as allow: added tcp:10.0.0.1:443."""
    sandbox: SandboxView
    """State of the sandbox now."""


class ContainerAnswer(Answer):
    """Result of adding a container."""

    table: str | None
    """The [[attach]] table that decided; null if the container joins another sandbox."""
    changes: list[str]
    """Differences to the policy before."""
    sandbox: SandboxView
    """State of the sandbox that encloses the container."""


class RuleCounts(Answer):
    """Packet counts of a rule of a fence, as in a line of `ocsf-nft status --json`."""

    sandbox: str
    """Name of the sandbox."""
    rule: str
    """Name of the rule, such as egress."""
    mode: Mode
    """Mode of the rule's counters."""
    refused: int
    """Packets that an enforcing fence has counted."""
    allowed: int
    """Packets that a permissive fence has counted."""
    reported: int
    """Packets in events."""
    aggregated: int
    """Part of reported: packets in events that report several flows together."""
    pending: int
    """Counted packets that a later event will report."""
    dropped: int
    """Log records that were dropped before they were read."""
    fence: Mode
    """Mode of the fence."""
    counter_mismatch: int
    """Counted packets that are neither reported nor pending; normally 0."""
    is_watched: bool
    """Whether a running service watches the sandbox."""
    verdict: str | None
    """Comparison of the fence with its record; null if that is not possible."""
    surroundings: list[str]
    """Changes of settings of the network namespace that weaken the fence."""


class DroppedRecords(Answer):
    """Log records of a source that could not be read."""

    source: str
    """Name of the source."""
    gaps: int
    """Number of gaps."""
    records: int
    """Number of missing records, at least."""


class _Counted(Answer):
    counts: list[RuleCounts]
    """Packet counts of each rule; empty while no fence is active."""
    dropped_records: list[DroppedRecords]
    """Log records that could not be read, by source."""


class SandboxStatus(SandboxView, _Counted):
    """State of a sandbox with its packet counts."""

    missing_counters: list[str]
    """Rules without counters in the kernel: a part of the fence was deleted."""
    guard_note: str
    """Why there is no guard on the host, or what it does not check; else empty."""


class FinalStatus(_Counted):
    """Packet counts of a sandbox at its release."""

    sandbox: str
    """Name of the sandbox."""


class SinkStatus(Answer):
    """State of a sink."""

    name: str
    """Name of the sink."""
    fault: str | None
    """Why it accepts no events now; null if it does."""


class FaultStatus(Answer):
    """Fault of the service that lasts."""

    subject: str
    """Description of the error."""
    cause: str
    """Why, or for how long."""
    sandbox: str | None
    """Sandbox of the fault; null if it is one of the service."""


class ServiceStatus(Answer):
    """State of the service."""

    version: str
    """Version of ocsf-nft."""
    pid: int
    """Process id of the service."""
    state_dir: str
    """Path of the state directory, for the service."""
    store: str
    """Path of the state database, which has the events."""
    sandboxes: int
    """Number of sandboxes."""
    faults: list[FaultStatus]
    """Faults that last; empty if the service is well."""
    sinks: list[SinkStatus]
    """Destinations of events."""


class Reloaded(Answer):
    """Result of a reload."""

    reloaded: bool
    """True: the configuration file was read and applied."""


def view_of(view: sandbox_view.SandboxView) -> SandboxView:
    """Return the answer about a sandbox."""
    return SandboxView(**_view_keys(view))


def sandbox_status(view: sandbox_view.SandboxView, status: Status | None) -> SandboxStatus:
    """Return the answer about a sandbox with its counts; ``status`` is None without a fence."""
    missing = () if status is None else status.absent
    return SandboxStatus(
        **_view_keys(view),
        **_counted(status),
        missing_counters=list(missing),
        guard_note="" if status is None else status.guard_note,
    )


def final_status(status: Status) -> FinalStatus:
    """Return the answer about a released sandbox."""
    return FinalStatus(sandbox=status.sandbox, **_counted(status))


def service_status(engine: Engine) -> ServiceStatus:
    """Return the answer about the service of this process."""
    return ServiceStatus(
        version=VERSION,
        pid=os.getpid(),
        state_dir=_text(engine.state_dir),
        store=_text(engine.events.path),
        sandboxes=len(engine.sandboxes.views()),
        faults=[
            FaultStatus(subject=each.subject, cause=each.cause, sandbox=each.sandbox)
            for each in engine.faults()
        ],
        sinks=[SinkStatus(name=each.name, fault=each.fault) for each in engine.sinks()],
    )


def facts_of(body: bytes) -> ContainerFacts:
    """Return the facts about a container in the body of a PUT request.

    Raises MalformedError if the body is no JSON object, UsageError if a key or a value is wrong.
    """
    try:
        return ContainerFacts.model_validate(_object(body))
    except ValidationError as error:
        raise UsageError(sentence_of(error, ContainerFacts).removeprefix(": ")) from error


def sandbox_of(name: str, body: bytes) -> SandboxConfig:
    """Return the sandbox that the body of a PUT request configures.

    The default of ``install`` is true. Raises MalformedError if the body is no JSON object,
    UsageError if a key or a value is wrong.
    """
    given = _object(body)
    if "name" in given:
        raise UsageError("name: leave it out: the path has the name of the sandbox")
    try:
        found = SandboxConfig.model_validate({"install": True} | given | {"name": name})
    except ValidationError as error:
        raise UsageError(sentence_of(error, SandboxConfig)) from error
    found.check()
    return found


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise MalformedError('the body is no JSON object: write { "netns": … }')
    return given


def _view_keys(view: sandbox_view.SandboxView) -> dict[str, Any]:
    policy = view.config.given()
    if view.origin == "api" and policy.get("install") is True:  # the default of a PUT
        del policy["install"]
    return {
        "name": view.name,
        "origin": view.origin,
        "state": view.state,
        "mode": view.mode,
        "fault": view.fault,
        "guard": view.guard,
        "since": utc_text(view.since_ns // 1_000_000) or "",
        "policy": policy,
        "etag": etag_of(view),
    }


def _text(path: Path) -> str:
    return os.fsencode(path.absolute()).decode(errors="backslashreplace")


def _counted(status: Status | None) -> dict[str, Any]:
    if status is None:
        return {"counts": [], "dropped_records": []}
    return {
        "counts": [RuleCounts(**row) for row in status.rows()],
        "dropped_records": [DroppedRecords(**each._asdict()) for each in status.dropped_records],
    }
