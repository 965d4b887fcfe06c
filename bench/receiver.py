"""Receiver of sinks, which does as little with the data as the protocols permit.

``tcp PORT COUNTS``: reads and discards.
``unix PATH COUNTS``: the same for a Unix stream socket.
``http PORT COUNTS``: answers each request with 200.
``bulk PORT COUNTS``: answers as OpenSearch's bulk API does, after parsing each document as JSON.
``hec PORT COUNTS``, ``otlp PORT COUNTS``: as ``http``; for OTLP it counts log records.

It writes the number of received events to the file COUNTS, in 8 bytes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

#: First bytes of an event, and of a log record of OpenTelemetry. They do not occur within it.
_EVENT = b'{"class_uid":'
_LOG_RECORD = b'{"timeUnixNano":'
_CHUNK_BYTES = 1 << 18
_LOCALHOST = "127.0.0.1"


class Counts:
    """Number of received events, readable by another process."""

    def __init__(self, path: str, beginning: bytes) -> None:
        self.beginning = beginning
        self._number = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def add(self, data: bytes) -> None:
        """Count the events that begin in the data."""
        self._number += data.count(self.beginning)
        os.pwrite(self._file, struct.pack("=Q", self._number), 0)


def take(listener: socket.socket, counts: Counts) -> None:
    """Read from one connection after another; count the events."""
    while True:
        connection, _ = listener.accept()
        rest = b""
        while chunk := connection.recv(_CHUNK_BYTES):
            data = rest + chunk
            counts.add(data)
            rest = data[1 - len(counts.beginning) :]
        connection.close()


def serve(port: int, answer: Callable[[bytes], web.Response]) -> None:
    """Answer the requests at a port."""

    async def handle(request: web.Request) -> web.Response:
        return answer(await request.read())

    application = web.Application(client_max_size=1 << 28)
    application.router.add_route("*", "/{path:.*}", handle)
    web.run_app(application, host=_LOCALHOST, port=port, access_log=None, print=None)


def indexed(body: bytes) -> web.Response:
    """Return the answer to a bulk request: each document is created."""
    *lines, last = body.split(b"\n")
    if last or len(lines) % 2:
        return web.Response(status=400)
    items = []
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        target = orjson.loads(action)["create"]
        orjson.loads(document)
        items.append({"create": {**target, "_version": 1, "result": "created", "status": 201}})
    answer = orjson.dumps({"took": 1, "errors": False, "items": items})
    return web.Response(body=answer, content_type="application/json")


def accepted(_: bytes) -> web.Response:
    """Return the answer to any request: all of it is accepted, in the words of Splunk."""
    return web.json_response({"text": "Success", "code": 0})


def main(kind: str, address: str, path: str) -> None:
    """Run with the arguments of the command line."""
    counts = Counts(path, _LOG_RECORD if kind == "otlp" else _EVENT)
    if kind == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen()
            take(listener, counts)
    elif kind == "tcp":
        with socket.create_server((_LOCALHOST, int(address))) as listener:
            take(listener, counts)
    else:
        answer = indexed if kind == "bulk" else accepted

        def counted(body: bytes) -> web.Response:
            counts.add(body)
            return answer(body)

        serve(int(address), counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
