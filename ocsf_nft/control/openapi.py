"""OpenAPI document of the control API, made from its models."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic.json_schema import models_json_schema

from ocsf_nft.config import SandboxConfig
from ocsf_nft.control import models
from ocsf_nft.control.container_facts import ContainerFacts
from ocsf_nft.control.problems import CONTENT_TYPE, Problem

if TYPE_CHECKING:
    from pydantic import BaseModel

_REF: Final = "#/components/schemas/{model}"
_POLICY: Final = "Policy"
_ANSWERS: Final[tuple[type[BaseModel], ...]] = (
    models.SandboxList,
    models.SandboxStatus,
    models.PutAnswer,
    models.ContainerAnswer,
    models.FinalStatus,
    models.ServiceStatus,
    models.Reloaded,
    Problem,
)
_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of the sandbox.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
#: Header that binds a change to the version that the client has seen.
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": "Only if the sandbox still has this version: its etag.",
    "schema": {"type": "string"},
}


_KEY: Final = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The container's id in its runtime.",
    "schema": {"type": "string", "minLength": 1},
}


@cache
def openapi() -> bytes:
    """Return the OpenAPI 3.1 document as JSON text."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2) + b"\n"


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Control API of ocsf-nft",
            "version": "1",
            "description": (
                "HTTP/1.1 over the Unix socket of the key `control`. The socket's mode and group "
                "decide who may connect. Every error is a problem document (RFC 9457)."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "The host's name is not used."}],
        "paths": {
            "/v1/sandboxes": {"get": _operation(
                "listSandboxes", "List the sandboxes.", {200: models.SandboxList}, (),
            )},
            "/v1/sandboxes/{name}": {
                "parameters": [_NAME],
                "get": _operation(
                    "getSandbox", "Show a sandbox with its packet counts.",
                    {200: models.SandboxStatus}, (404, 422, 503),
                ),
                "put": _put(),
                "delete": _operation(
                    "releaseSandbox",
                    "Release a sandbox: remove its fence, and return its final counts.",
                    {200: models.FinalStatus}, (404, 409, 412, 422, 503), (_IF_MATCH,),
                ),
            },
            "/v1/containers/{key}": {
                "parameters": [_KEY],
                "put": _attach(),
                "delete": _operation(
                    "releaseContainer", "Release the sandbox of a container that has ended.",
                    {200: models.FinalStatus}, (404, 409, 422, 503),
                ),
            },
            "/v1/events": {"get": _events()},
            "/v1/status": {"get": _operation(
                "getStatus", "Show the state of the service.", {200: models.ServiceStatus}, (),
            )},
            "/v1/reload": {"post": _operation(
                "reload", "Read the configuration file again, as SIGHUP does.",
                {200: models.Reloaded}, (404, 422, 503),
            )},
            "/v1/openapi.json": {"get": {
                "operationId": "getOpenapi",
                "summary": "Return this document.",
                "responses": {
                    "200": {"description": "OK", "content": {"application/json": {"schema": {
                        "type": "object",
                    }}}},
                },
            }},
        },
        "components": {"schemas": _schemas()},
    }  # fmt: skip


def _put() -> dict[str, Any]:
    made = _operation(
        "putSandbox",
        "Add a sandbox, or change its policy. The answer comes when the fence is active and its "
        "log records are read.",
        {201: models.PutAnswer, 200: models.PutAnswer},
        (400, 404, 408, 409, 412, 413, 422, 503),
        (_IF_MATCH,),
    )
    return made | {"requestBody": _body(_POLICY)}


def _attach() -> dict[str, Any]:
    made = _operation(
        "putContainer",
        "Fence a container as the [[attach]] tables require, before its first process starts. The "
        "container may start only after an answer with 200, 201, or 204 (without a fence).",
        {201: models.ContainerAnswer, 200: models.ContainerAnswer},
        (400, 403, 404, 408, 409, 413, 422, 503),
    )
    made["responses"]["204"] = {"description": "A table allows it without a fence"}
    return made | {"requestBody": _body(ContainerFacts.__name__)}


def _events() -> dict[str, Any]:
    made = _operation("listEvents", "Return stored events as JSON Lines.", {}, (422, 503))
    made["parameters"] = [
        _parameter("sandbox", "Only events of this sandbox.", {"type": "string"}),
        _parameter(
            "class",
            "Only events of these classes, by names or uids with commas between them, such as "
            "network_activity,2004.",
            {"type": "string"},
        ),
        _parameter(
            "severity",
            "Only events of this severity or a higher one.",
            {"enum": ["informational", "low", "medium", "high", "critical"]},
        ),
        _parameter(
            "since",
            "Only events since this time (RFC 3339), or since this long ago: 90s, 15m, 12h, 7d.",
            {"type": "string"},
        ),
        _parameter("until", "Only events before this time, or this age.", {"type": "string"}),
        _parameter("uid", "Only the event with this metadata.uid.", {"type": "string"}),
        _parameter(
            "last",
            "Of the stored events, only the last ones: at most this number. 0 with follow=1: only "
            "new ones.",
            {"type": "integer", "minimum": 0},
        ),
        _parameter(
            "after",
            "Only events that were stored after the one with this metadata.uid; all events if it "
            "is stored no more.",
            {"type": "string"},
        ),
        _parameter(
            "follow",
            "1: continue with new events until the client closes the connection.",
            {"enum": ["0", "1"], "default": "0"},
        ),
    ]
    made["responses"]["200"] = {
        "description": "One OCSF event in each line.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
    return made


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _operation(
    identifier: str,
    summary: str,
    answers: dict[int, type[BaseModel]],
    errors: tuple[int, ...],
    parameters: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    responses = {
        str(status): _response(status, "application/json", model)
        for status, model in answers.items()
    }
    responses |= {str(status): _response(status, CONTENT_TYPE, Problem) for status in errors}
    responses["default"] = _response(None, CONTENT_TYPE, Problem)
    made: dict[str, Any] = {"operationId": identifier, "summary": summary}
    return (
        made | ({"parameters": list(parameters)} if parameters else {}) | {"responses": responses}
    )


def _response(status: int | None, content_type: str, model: type[BaseModel]) -> dict[str, Any]:
    return {
        "description": "Any other error" if status is None else HTTPStatus(status).phrase,
        "content": _content(content_type, model.__name__),
    }


def _body(schema: str) -> dict[str, Any]:
    return {"required": True, "content": _content("application/json", schema)}


def _content(content_type: str, schema: str) -> dict[str, Any]:
    return {content_type: {"schema": {"$ref": _REF.format(model=schema)}}}


def _schemas() -> dict[str, Any]:
    _, made = models_json_schema(
        [
            (SandboxConfig, "validation"),
            (ContainerFacts, "validation"),
            *((each, "serialization") for each in _ANSWERS),
        ],
        ref_template=_REF,
    )
    found: dict[str, Any] = made["$defs"]
    policy = found.pop(SandboxConfig.__name__)
    # The path has the name, and a sandbox that is added by the API is fenced by default.
    del policy["properties"]["name"]
    policy["required"] = [each for each in policy.get("required", ()) if each != "name"]
    policy["properties"]["install"]["default"] = True
    policy["title"] = _POLICY
    found[_POLICY] = policy
    for model in (models.SandboxView, models.SandboxStatus):
        schema = found[model.__name__]["properties"]["policy"]
        found[model.__name__]["properties"]["policy"] = {
            "$ref": _REF.format(model=_POLICY),
            "description": schema["description"],
        }
    # pydantic also describes Python objects that a text is converted to.
    used = orjson.dumps(found).decode()
    return {name: found[name] for name in sorted(found) if _is_used(name, used)}


def _is_used(name: str, schemas: str) -> bool:
    answers = {each.__name__ for each in _ANSWERS}
    return name in {_POLICY, ContainerFacts.__name__, *answers} or f'/{name}"' in schemas
