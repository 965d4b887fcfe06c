"""Requests of an OCI runtime or a CNI plugin to the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.control.problems import CONTENT_TYPE
from tests.control.engine import serving
from tests.control.raw_client import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from ocsf_nft.lab import Lab
    from tests.control.engine import Served

pytestmark = pytest.mark.kernel

_ID = "3f" * 32
_PATH = f"/v1/containers/{_ID}"
_TABLES = [
    AttachConfig.model_validate(
        {"name": "agents", "match": {"container": ["web"]}, "proxy": ["10.0.0.1:3128"]}
    ),
    AttachConfig.model_validate(
        {"name": "rest", "match": {"container": ["free"]}, "action": "allow"}
    ),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory.throwaway() as made:
        yield made


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[Served]:
    async with serving(folder / "control.sock", attach=_TABLES) as made:
        yield made


def _body(lab: Lab, **given: Any) -> bytes:
    return orjson.dumps({"id": _ID, "name": "web", "netns": f"/run/netns/{lab.sandbox}"} | given)


async def test_container_is_added_and_released(lab: Lab, served: Served) -> None:
    added = await ask(served.path, "PUT", _PATH, _body(lab))
    same = await ask(served.path, "PUT", _PATH, _body(lab, network="shared"))
    assert (added.status, same.status) == (201, 200)
    assert added.headers["location"] == "/v1/sandboxes/web-3f3f3f3f3f3f"
    assert added.json["table"] == "agents"
    assert added.json["sandbox"]["name"] == "web-3f3f3f3f3f3f"
    assert added.json["sandbox"]["policy"]["container"] == {
        "uid": _ID,
        "name": "web",
        "labels": {},
    }
    released = await ask(served.path, "DELETE", _PATH)
    assert (released.status, released.json["sandbox"]) == (200, "web-3f3f3f3f3f3f")
    assert (await ask(served.path, "DELETE", _PATH)).status == 404


async def test_container_that_a_table_allows_has_an_empty_answer(lab: Lab, served: Served) -> None:
    answer = await ask(served.path, "PUT", _PATH, _body(lab, name="free"))
    assert (answer.status, answer.body) == (204, b"")
    assert served.sandboxes.calls == []


@pytest.mark.parametrize(
    ("given", "status", "kind", "sentence"),
    [
        ({"name": "other"}, 403, "refused", "no [[attach]] table matches it"),
        ({"netns": "/proc/self/ns/net"}, 403, "refused", "namespace of the host"),
        ({"netns": "/run/netns/removed"}, 404, "absent", "/run/netns/removed"),
        ({"nam": "x"}, 422, "invalid", "there is no key nam: did you mean name?"),
        ({"pid": "1"}, 422, "invalid", "pid: "),
        ({"netns": None}, 422, "invalid", "must have a pid or a netns"),
        ({"labels": {"a": 1}}, 422, "invalid", "labels.a: "),
    ],
)
async def test_refused_container_is_a_problem(
    lab: Lab, served: Served, given: dict[str, Any], status: int, kind: str, sentence: str
) -> None:
    answer = await ask(served.path, "PUT", _PATH, _body(lab, **given))
    assert answer.status == status
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert answer.json["type"] == f"urn:ocsf-nft:problem:{kind}"
    assert sentence in answer.json["detail"]
    assert served.sandboxes.calls == []


@pytest.mark.parametrize("body", [b"{", b"[]", b""])
async def test_body_that_is_no_object_is_a_problem(served: Served, body: bytes) -> None:
    answer = await ask(served.path, "PUT", _PATH, body)
    assert (answer.status, answer.json["type"]) == (400, "urn:ocsf-nft:problem:malformed")
