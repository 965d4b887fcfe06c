"""Limits of an HTTP session: sizes, lengths, status codes and timeouts."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.delivery.receiver_settings import Receiver
from ocsf_nft.delivery.sinks.http_client import HttpAnswer, HttpSession, _cause
from tests.delivery.sinks.servers import AnyJson, answering, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def _session(url: str) -> AsyncIterator[HttpSession]:
    session = HttpSession(Receiver(url=url))
    await session.open()
    try:
        yield session
    finally:
        await session.close()


async def test_web_session_compresses_a_body_of_1024_bytes_or_more() -> None:
    server = AnyJson()
    async with serving(server) as url, _session(url) as session:
        for size in (1023, 1024):
            await session.request("POST", body=b'["%b"]' % (b"x" * (size - 4)))
    assert [seen.headers.get("Content-Encoding") for seen in server.seen] == [None, "gzip"]


async def test_web_session_reads_an_answer_up_to_its_limit() -> None:
    server = AnyJson()
    async with serving(server) as url, _session(url) as session:
        for size, most in ((9, 10), (10, 10), (11, 10), (70_000, None)):
            server.then(answering(200, "x" * size))
            limit: Any = {} if most is None else {"answer_bytes": most}
            answer = await session.request("POST", **limit)
            assert len(answer.body) == min(size, most or 1 << 16)


def test_answer_is_a_success_only_with_a_status_of_2xx() -> None:
    session = HttpSession(Receiver(url="http://x"))
    for status, is_success, is_redirect in (
        (199, False, False),
        (200, True, False),
        (299, True, False),
        (300, False, True),
        (399, False, True),
        (400, False, False),
    ):
        answer = HttpAnswer(status=status, body=b"", after_seconds=None)
        assert answer.is_success is is_success
        assert ("redirects are not followed" in session.describe(answer)) is is_redirect


def test_web_session_shows_200_characters_of_the_first_800() -> None:
    session = HttpSession(Receiver(url="http://x"))
    assert session.printable("x" * 999) == "x" * 200
    assert session.printable("a" + " " * 798 + "bc") == "a b"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TimeoutError(), "no connection after 10 s"),
        (OSError(1, "odd"), "Operation not permitted"),
        (OSError(0, "of no error"), "of no error"),
        (socket.gaierror(-1, "of a name"), "of a name"),
    ],
)
def test_cause_of_a_system_error_is_the_systems(error: OSError, cause: str) -> None:
    assert _cause(error) == cause
