"""Answers of the control API to correct requests, and to wrong ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from ocsf_nft.control.openapi import document
from ocsf_nft.errors import (
    ConflictError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    SourceError,
    UnsupportedError,
)
from ocsf_nft.version import VERSION
from tests.control.engine import HUGE
from tests.control.raw_client import ask, connected

if TYPE_CHECKING:
    from tests.control.engine import Served

POLICY: dict[str, Any] = {
    "netns": "agent",
    "proxy": ["10.0.0.1:3128", "[fd00::1]:3128"],
    "allow": ["udp:10.0.0.53:53"],
    "labels": {"team": "search"},
    "container": {"name": "c"},
}
BODY = orjson.dumps(POLICY)
_PROGRAM = str(Path("/proc/self/exe").readlink())


def _validator(schema: str) -> Draft202012Validator:
    """Return a validator for a schema of the OpenAPI document."""
    root = Resource.from_contents(document(), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:api", root)
    return Draft202012Validator(
        {"$ref": f"urn:api#/components/schemas/{schema}"}, registry=registry
    )


async def test_put_adds_a_sandbox_and_then_changes_it(served: Served) -> None:
    async with connected(served.path) as client:
        added = await client.ask("PUT", "/v1/sandboxes/a.b-1", BODY)
        same = await client.ask("PUT", "/v1/sandboxes/a.b-1", BODY)
        changed = await client.ask("PUT", "/v1/sandboxes/a.b-1", b'{"proxy": ["10.0.0.1:1"]}')
    assert (added.status, same.status, changed.status) == (201, 200, 200)
    assert added.headers["location"] == "/v1/sandboxes/a.b-1"
    assert added.headers["content-type"].startswith("application/json")
    assert added.json == {
        "changes": [],
        "sandbox": {
            "name": "a.b-1",
            "origin": "api",
            "state": "active",
            "mode": "enforcing",
            "fault": None,
            "guard": None,
            "since": "2023-11-14T22:13:20.123Z",
            "policy": POLICY,
            "etag": added.headers["etag"],
        },
    }
    assert same.json["changes"] == []
    assert changed.json["changes"] == ["policy: changed"]
    assert changed.json["sandbox"]["policy"] == {"proxy": ["10.0.0.1:1"]}
    assert served.sandboxes.found["a.b-1"].config.install


async def test_put_without_install_only_watches(served: Served) -> None:
    answer = await ask(served.path, "PUT", "/v1/sandboxes/a", b'{"install": false}')
    assert answer.status == 201
    assert not served.sandboxes.found["a"].config.install
    assert answer.json["sandbox"]["policy"] == {"install": False}


async def test_kernel_s_credentials_of_the_caller_reach_the_engine(served: Served) -> None:
    await ask(served.path, "PUT", "/v1/sandboxes/a", BODY)
    await ask(served.path, "DELETE", "/v1/sandboxes/a")
    for what, name, caller in served.sandboxes.calls:
        assert name == "a", what
        assert caller is not None
        assert (caller.uid, caller.gid, caller.pid) == (os.getuid(), os.getgid(), os.getpid())
        assert (caller.name, caller.path) == (Path(_PROGRAM).name, _PROGRAM)
    assert [what for what, *_ in served.sandboxes.calls] == ["put", "release"]


async def test_sandboxes_are_listed_shown_with_their_counts_and_released(served: Served) -> None:
    async with connected(served.path) as client:
        assert (await client.ask("GET", "/v1/sandboxes")).json == {"sandboxes": []}
        for name in ("b", "a"):
            await client.ask("PUT", f"/v1/sandboxes/{name}", BODY)
        listed = (await client.ask("GET", "/v1/sandboxes")).json["sandboxes"]
        assert [each["name"] for each in listed] == ["a", "b"]
        shown = (await client.ask("GET", "/v1/sandboxes/a")).json
        final = (await client.ask("DELETE", "/v1/sandboxes/a")).json
        left = (await client.ask("GET", "/v1/sandboxes")).json["sandboxes"]
    assert [each["name"] for each in left] == ["b"]
    counts, dropped = shown.pop("counts"), shown.pop("dropped_records")
    assert shown.pop("missing_counters") == ["forward"]
    assert shown.pop("guard_note") == ""
    assert shown == listed[0]
    assert dropped == [{"source": "nflog", "gaps": 1, "records": 2}]
    assert counts == [
        {
            "sandbox": "a", "rule": "egress", "mode": "enforcing", "refused": HUGE, "allowed": 0,
            "reported": 7, "aggregated": 0, "pending": 0, "dropped": 1, "fence": "enforcing",
            "counter_mismatch": HUGE - 7, "is_watched": True, "verdict": "as installed",
            "surroundings": [],
        }
    ]  # fmt: skip
    assert final == {"sandbox": "a", "counts": counts, "dropped_records": dropped}


async def test_sandbox_without_a_fence_has_no_counts(served: Served) -> None:
    await ask(served.path, "PUT", "/v1/sandboxes/a", BODY)
    before = served.sandboxes.found["a"]
    fault = "there is no network namespace at /run/netns/agent"
    served.sandboxes.found["a"] = replace(before, origin="file", state="waiting", fault=fault)
    shown = (await ask(served.path, "GET", "/v1/sandboxes/a")).json
    assert (shown["origin"], shown["state"], shown["fault"]) == ("file", "waiting", fault)
    assert shown["counts"] == shown["dropped_records"] == []
    assert shown["policy"]["install"], "not the default of a configuration file"


async def test_status_of_the_service_and_reload(served: Served) -> None:
    async with connected(served.path) as client:
        await client.ask("PUT", "/v1/sandboxes/a", BODY)
        status = (await client.ask("GET", "/v1/status")).json
        assert status == {
            "version": VERSION,
            "pid": os.getpid(),
            "state_dir": str(served.path.parent),
            "store": str(served.path.with_name("store")),
            "sandboxes": 1,
            "faults": [{"subject": "sink siem is down", "cause": "refused", "sandbox": None}],
            "sinks": [{"name": "siem", "fault": "refused"}, {"name": "-", "fault": None}],
        }
        assert (await client.ask("POST", "/v1/reload")).json == {"reloaded": True}
        assert served.reloads == 1


async def test_answers_fit_the_openapi_document(served: Served) -> None:
    async with connected(served.path) as client:
        put = await client.ask("PUT", "/v1/sandboxes/a", BODY)
        for schema, found in (
            ("PutAnswer", put),
            ("SandboxList", await client.ask("GET", "/v1/sandboxes")),
            ("SandboxStatus", await client.ask("GET", "/v1/sandboxes/a")),
            ("ServiceStatus", await client.ask("GET", "/v1/status")),
            ("Reloaded", await client.ask("POST", "/v1/reload")),
            ("FinalStatus", await client.ask("DELETE", "/v1/sandboxes/a")),
            ("Problem", await client.ask("DELETE", "/v1/sandboxes/a")),
        ):
            validator = _validator(schema)
            assert [error.message for error in validator.iter_errors(found.json)] == [], schema
        assert (await client.ask("GET", "/v1/openapi.json")).json == document()
    assert not _validator("Policy").is_valid({"prxy": []})
    assert not _validator("Policy").is_valid({"name": "a"})


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[" * 60_000, 400, "the body is not JSON"),
        (b"[]", 400, "the body is no JSON object"),
        (b"null", 400, "the body is no JSON object"),
        (b"{}", 422, "a fence of profile sandbox needs --proxy ADDR:PORT"),
        (b'{"prxy": []}', 422, "there is no key prxy: did you mean proxy?"),
        (b'{"%s": 1}' % (b"\xc3\xa9\x7f" * 9000), 422, "there is no key"),
        (b'{"name": "a"}', 422, "name: leave it out: the path has the name"),
        (b'{"state_dir": "/"}', 422, "there is no key state_dir"),
        (b'{"output": "/etc/x"}', 422, "there is no key output"),
        (b'{"proxy": "10.0.0.1:1"}', 422, "proxy: must be a list: put it in [ ]"),
        (b'{"proxy": ["%s"]}' % (b"x" * 60_000), 422, '"xxxxx'),
        (b'{"proxy": [3]}', 422, "proxy.0: must be text, not 3"),
        (b'{"proxy": ["10.0.0.1:1; drop"]}', 422, "is no ADDR:PORT"),
        (b'{"pid": "1"}', 422, "pid: input should be a valid integer"),
        (b'{"pid": 1e400}', 400, "the body is not JSON"),
        (b'{"pid": 123456789012345678901234567890}', 422, "pid: input should be a valid integer"),
        (b'{"permissive": 1}', 422, "permissive: input should be a valid boolean"),
        (b'{"netns": "a", "pid": 1}', 422, "sandbox a has both netns and pid: give one"),
        (b'{"netns": "a\\u0000b"}', 422, "netns: must not hold a NUL"),
        (b'{"labels": ["a"]}', 422, "labels: must be a table of texts"),
        (b'{"labels": {"a": 1}}', 422, 'labels: the label "a" must be text'),
        (b'{"labels": {"a\\n": "1"}}', 422, 'labels: "a\\n" is no key of a label'),
        (b'{"labels": {"a": "\\u001b[2J"}}', 422, "the label a has a value that"),
        (b'{"container": {}}', 422, "container: must have a uid or a name"),
        (b'{"container": 1}', 422, "container: must be one table"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_wrong_body_is_answered_with_its_fault(
    served: Served, body: bytes, status: int, sentence: str
) -> None:
    answer = await ask(served.path, "PUT", "/v1/sandboxes/a", body)
    assert sentence in answer.problem
    assert answer.status == status
    kind = "malformed" if status == 400 else "invalid"
    assert answer.json["type"] == f"urn:ocsf-nft:problem:{kind}"
    assert served.sandboxes.calls == []


@pytest.mark.parametrize(
    ("method", "target", "status", "sentence"),
    [
        ("GET", "/v1/sandboxes/none", 404, "there is no sandbox none"),
        ("DELETE", "/v1/sandboxes/none", 404, "there is no sandbox none"),
        ("PUT", "/v1/sandboxes/a%2Fb", 422, '"a/b" is no sandbox name'),
        ("PUT", "/v1/sandboxes/%2e%2e", 422, '".." is no sandbox name'),
        ("PUT", "/v1/sandboxes/..", 422, '".." is no sandbox name'),
        ("PUT", "/v1/sandboxes/a%00b", 422, "is no sandbox name"),
        ("PUT", "/v1/sandboxes/%0a", 422, '"\\n" is no sandbox name'),
        ("PUT", "/v1/sandboxes/%ff%fe", 422, "is no sandbox name"),
        ("PUT", "/v1/sandboxes/" + "a" * 65, 422, "is no sandbox name"),
        ("GET", "/v1/sandboxes/" + "a" * 5000, 422, "is no sandbox name"),
        ("PUT", "/v1/sandboxes/a/b", 404, "there is nothing at this path"),
        ("PUT", "/v1/sandboxes/", 404, "there is nothing at this path"),
        ("GET", "/", 404, "there is nothing at this path"),
        ("GET", "/v1/sandboxes?x=1", 422, 'there is no parameter "x": this path has none'),
        ("GET", "/v1/events?sandbx=1", 422, 'no parameter "sandbx": did you mean sandbox?'),
        ("GET", "/v1/events?since=1s&since=2s", 422, "the parameter since is repeated"),
        ("GET", "/v1/events?since=soon", 422, 'since "soon" is no time'),
        ("GET", "/v1/events?severity=odd", 422, 'severity "odd" is unknown: give one of critical'),
        ("GET", "/v1/events?follow=yes", 422, 'follow "yes" is unknown: give 0 or 1'),
        ("GET", "/v1/events?last=-1", 422, 'last "-1" is no number of events'),
        ("GET", "/v1/events?last=1&after=x", 422, "last and after can't be combined"),
        ("GET", "/v1/events?class=4001,odd", 422, 'class "odd" is not known: give one of'),
        ("GET", "/v1/events", 503, "can't be read"),
        ("HEAD", "/v1/events", 405, ""),
        ("POST", "/v1/sandboxes/a", 405, "the header Allow lists its methods"),
        ("DELETE", "/v1/sandboxes", 405, "the header Allow lists its methods"),
        ("GET", "/v1/reload", 405, "the header Allow lists its methods"),
        ("BREW", "/v1/status", 400, "the request is no valid HTTP/1.1"),
        ("CONNECT", "/v1/status", 404, "there is nothing at this path"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_wrong_request_is_answered_with_its_fault(
    served: Served, method: str, target: str, status: int, sentence: str
) -> None:
    async with connected(served.path) as client:
        client.send(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        if method == "HEAD":
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 405 ")
            return
        answer = await client.answer()
    assert sentence in answer.problem
    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)
    assert served.sandboxes.calls == []


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ConflictError("the name is used: release it"), 409, "conflict"),
        (FenceError("nft failed: see above"), 503, "fence"),
        (UnsupportedError("the kernel has no nftables"), 503, "unsupported"),
        (SourceError("NFLOG can't be read"), 503, "source"),
        (DeliveryError("the disk is full: make room"), 503, "delivery"),
        (OcsfNftError("it failed"), 503, "failed"),
    ],
)
async def test_error_of_the_engine_is_a_problem_of_its_kind(
    served: Served, error: OcsfNftError, status: int, kind: str
) -> None:
    served.sandboxes.error = error
    for method, target in (("PUT", "/v1/sandboxes/a"), ("POST", "/v1/reload")):
        answer = await ask(served.path, method, target, BODY)
        assert answer.problem == str(error)
        assert (answer.status, answer.json["type"]) == (status, f"urn:ocsf-nft:problem:{kind}")


async def test_bug_in_the_engine_is_a_problem_without_its_details(served: Served) -> None:
    served.sandboxes.bug = RuntimeError("secret")
    answer = await ask(served.path, "PUT", "/v1/sandboxes/a", BODY)
    assert answer.status == 500
    assert "its log has the cause" in answer.problem
    assert b"secret" not in answer.body
    served.sandboxes.bug = None
    assert (await ask(served.path, "PUT", "/v1/sandboxes/a", BODY)).status == 201


async def test_sentence_with_invalid_text_is_valid_json(served: Served) -> None:
    served.sandboxes.error = FenceError("the program \udcff\x1b failed")
    answer = await ask(served.path, "PUT", "/v1/sandboxes/a", BODY)
    assert answer.problem == "the program \\udcff\x1b failed"
    assert b"\x1b" not in answer.body
