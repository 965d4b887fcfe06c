"""Client of the control API that sends any bytes, also wrong ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_SECONDS: Final = 20.0
#: RFC 9457, 3.1: the members that this API always has.
_PROBLEM: Final = Draft202012Validator(
    {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
        "properties": {
            "type": {"type": "string", "pattern": "^(about:blank|urn:ocsf-nft:problem:[a-z]+)$"},
            "title": {"type": "string", "minLength": 1},
            "status": {"type": "integer"},
            "detail": {"type": "string", "minLength": 1},
        },
    }
)


@dataclass(frozen=True)
class Answer:
    """Answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)  # numbers may have more than 64 bits

    @property
    def problem(self) -> str:
        """Return the sentence of a problem document, after a check of the document."""
        assert self.headers["content-type"].startswith("application/problem+json")
        _PROBLEM.validate(self.json)
        assert self.json["status"] == self.status
        sentence = str(self.json["detail"])
        assert "\n" not in sentence
        assert len(sentence) < 1000
        return sentence


class RawClient:
    """Connection to a Unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip("\r\n").split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            headers = {name.lower(): value for name, _, value in pairs}
            size = headers.get("content-length")
            body = await (
                self.reader.read() if size is None else self.reader.readexactly(int(size))
            )
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, method: str, target: str, body: bytes | None = None) -> Answer:
        self.send(request(method, target, body))
        return await self.answer()

    async def is_closed(self) -> bool:
        """Wait until the connection is closed; return False if data came before."""
        async with asyncio.timeout(_SECONDS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


def request(method: str, target: str, body: bytes | None = None) -> bytes:
    """Return the bytes of a request."""
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode() + (body or b"")


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[RawClient]:
    """Yield a client of the socket at ``path``."""
    client = RawClient(*await asyncio.open_unix_connection(path))
    try:
        yield client
    finally:
        client.writer.close()


async def ask(path: Path, method: str, target: str, body: bytes | None = None) -> Answer:
    """Send one request on a connection of its own."""
    async with connected(path) as client:
        return await client.ask(method, target, body)
