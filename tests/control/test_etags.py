"""Changes that are bound to the version of a sandbox that their caller has seen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import ocsf_nft
from tests.control.engine import wait_until
from tests.control.raw_client import Answer, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.control.engine import Served
    from tests.control.raw_client import RawClient

ONE, TWO, THREE = (f'{{"proxy": ["10.0.0.{number}:1"]}}'.encode() for number in (1, 2, 3))
TARGET = "/v1/sandboxes/a"


class Tagged:
    """Connection that sends requests with the header If-Match."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    async def ask(self, method: str, body: bytes = b"", *if_match: str) -> Answer:
        headers = "".join(f"If-Match: {each}\r\n" for each in if_match)
        length = f"Content-Length: {len(body)}\r\n"
        head = f"{method} {TARGET} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n"
        self.client.send(head.encode() + body)
        return await self.client.answer()


@pytest.fixture
async def tagged(served: Served) -> AsyncIterator[Tagged]:
    async with connected(served.path) as client:
        yield Tagged(client)


async def test_tag_changes_with_the_policy_only(tagged: Tagged, served: Served) -> None:
    first = await tagged.ask("PUT", ONE)
    tag = first.headers["etag"]
    assert first.json["sandbox"]["etag"] == tag
    assert (await tagged.ask("GET")).headers["etag"] == tag
    assert (await tagged.ask("PUT", ONE)).headers["etag"] == tag
    found = served.sandboxes.found["a"]
    served.sandboxes.found["a"] = replace(found, state="absent", fault="removed")
    assert (await tagged.ask("GET")).headers["etag"] == tag
    served.sandboxes.found["a"] = replace(found, since_ns=1)
    assert (await tagged.ask("GET")).headers["etag"] != tag, "it was added again"
    assert (await tagged.ask("PUT", TWO)).headers["etag"] != tag


async def test_change_of_another_version_is_refused(tagged: Tagged, served: Served) -> None:
    tag = (await tagged.ask("PUT", ONE)).headers["etag"]
    assert (await tagged.ask("PUT", TWO, tag)).status == 200
    for method, body in (("PUT", THREE), ("DELETE", b"")):
        refused = await tagged.ask(method, body, tag)
        assert refused.status == 412
        assert "was changed meanwhile" in refused.problem
        assert refused.json["type"] == "urn:ocsf-nft:problem:changed"
    assert str(served.sandboxes.found["a"].config.proxy[0]) == "10.0.0.2:1"
    present = (await tagged.ask("GET")).headers["etag"]
    accepted = [[present], ["*"], [f'"other" , {tag},{present}'], [tag, present]]
    for given in accepted:
        assert (await tagged.ask("PUT", TWO, *given)).status == 200, given
    assert (await tagged.ask("DELETE", b"", present)).status == 200
    for one in (present, "*"):
        gone = await tagged.ask("PUT", ONE, one)
        assert (gone.status, "no sandbox a any more" in gone.problem) == (412, True)


@pytest.mark.parametrize("wrong", ["x", '"a', 'W/"a"', '"a" "b"', "", '"a",', '*, "a"', '"\x7f"'])
async def test_header_that_is_no_list_of_tags_is_refused(tagged: Tagged, wrong: str) -> None:
    await tagged.ask("PUT", ONE)
    refused = await tagged.ask("PUT", TWO, wrong)
    assert refused.status in {400, 422}
    assert refused.problem


async def test_client_does_not_overwrite_the_change_of_another_one(served: Served) -> None:
    async with ocsf_nft.Client(served.path) as client:
        seen = (await client.put("a", proxy=["10.0.0.1:1"]))["sandbox"]["etag"]
        await client.put("a", proxy=["10.0.0.2:1"], if_match=seen)
        with pytest.raises(ocsf_nft.ChangedError, match="changed meanwhile"):
            await client.put("a", proxy=["10.0.0.3:1"], if_match=seen)
        assert (await client.sandbox("a"))["policy"] == {"proxy": ["10.0.0.2:1"]}


async def test_condition_is_checked_after_the_calls_before(served: Served) -> None:
    async with ocsf_nft.Client(served.path) as client:
        seen = (await client.put("a", proxy=["10.0.0.1:1"]))["sandbox"]["etag"]
        served.sandboxes.may_end.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(client.put("a", proxy=["10.0.0.2:1"], if_match=seen))
            await wait_until(lambda: len(served.sandboxes.calls) == 2)
            served.sandboxes.may_end.set()
        with pytest.raises(ocsf_nft.ChangedError):
            await client.put("a", proxy=["10.0.0.3:1"], if_match=seen)
