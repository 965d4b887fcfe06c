"""Requests to the delivery process for the addresses of host names."""

from __future__ import annotations

import asyncio

import pytest

from ocsf_nft.service import name_requests
from ocsf_nft.service.delivery_answers import FamilyAnswer, NameAnswer
from ocsf_nft.service.delivery_link import LinkError
from ocsf_nft.service.name_requests import NameRequests

_EMPTY = {4: FamilyAnswer(ttl=1), 6: FamilyAnswer(ttl=1)}


def _answer(number: int, name: str) -> NameAnswer:
    return NameAnswer(number=number, name=name, families=_EMPTY)


async def test_request_is_repeated_by_a_new_process() -> None:
    requests = NameRequests()
    sent: list[tuple[int, str]] = []
    asking = [asyncio.create_task(requests.resolve(name)) for name in ("a.test", "b.test")]
    await asyncio.sleep(0)
    requests.use(lambda *request: sent.append(request))
    assert sent == [(1, "a.test"), (2, "b.test")]
    requests.take(_answer(2, "b.test"))
    assert (await asking[1]).name == "b.test"
    requests.use(None)
    requests.use(lambda *request: sent.append(request))
    assert sent[2:] == [(1, "a.test")]
    requests.take(_answer(1, "a.test"))
    requests.take(_answer(1, "a.test"))
    assert await asking[0] == _answer(1, "a.test")
    await asyncio.sleep(0)
    requests.take(_answer(1, "a.test"))  # too late


async def test_request_without_an_answer_in_time_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(name_requests, "_SECONDS", 0.01)
    found = await NameRequests().resolve("a.test")
    for family in found.families.values():
        assert family.error == "the delivery process has not answered within 0.01 s"
        assert family.addresses == ()


async def test_answer_that_was_not_requested_is_an_error() -> None:
    requests = NameRequests()
    with pytest.raises(LinkError, match="addresses without a request"):
        requests.take(_answer(1, "a.test"))
    asking = asyncio.create_task(requests.resolve("a.test"))
    await asyncio.sleep(0)
    with pytest.raises(LinkError, match="addresses of another name"):
        requests.take(_answer(1, "b.test"))
    for number in (0, 2):
        with pytest.raises(LinkError, match="addresses without a request"):
            requests.take(_answer(number, "a.test"))
    assert not asking.done()
    asking.cancel()
    await asyncio.wait([asking])
