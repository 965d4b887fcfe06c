"""Stub of the service: an HTTP server on a Unix socket that records requests and answers them."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Status and JSON object of an answer.
Answer: TypeAlias = tuple[int, dict[str, Any]]
CREATED: Final[Answer] = (201, {"sandbox": {"name": "stub"}})


@dataclass(frozen=True, slots=True)
class Request:
    """One recorded request."""

    method: str
    path: str
    body: dict[str, Any]
    #: Process that sent it.
    pid: int

    @property
    def container(self) -> str:
        """Return the last part of the path."""
        return unquote(self.path.rpartition("/")[2])


@dataclass(slots=True)
class Stub:
    """Running stub; ``answer`` decides, and ``requests`` has all requests in their order."""

    socket: Path
    answer: Callable[[Request], Answer] = lambda _request: CREATED
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def silent(self, _request: Request) -> Answer:
        """Answer only when the stub ends, which is later than any time limit."""
        self.closing.wait()
        return CREATED

    def record_programs(self, process: Callable[[Request], Path]) -> list[str]:
        """Permit each container; return a list that gets the program of each one's process.

        ``process`` returns the folder in /proc of the process that a PUT request names. The stub
        reads the program's name before it answers.
        """
        programs: list[str] = []

        def answer(request: Request) -> Answer:
            if request.method == "PUT":
                programs.append((process(request) / "comm").read_text("ascii").strip())
            return CREATED

        self.answer = answer
        return programs

    def of(self, method: str) -> list[Request]:
        """Return the requests with this method."""
        return [each for each in self.requests if each.method == method]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False  # all have ended when the server is closed
    request_queue_size = 64


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = int.from_bytes(credentials[:4], sys.byteorder)
            request = Request(self.command, self.path, body, pid)
            stub.requests.append(request)
            status, found = stub.answer(request)
            content = b"" if status == 204 else json.dumps(found).encode()
            # The client may be dead: its time limit has passed.
            with contextlib.suppress(BrokenPipeError):
                self.send_response(status)
                if content:
                    self.send_header("Content-Type", "application/problem+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_PUT = do_DELETE = _respond  # noqa: N815 - the server's names

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Stub]:
    """Serve at a Unix socket until exit."""
    stub = Stub(path)
    with _Server(str(path), _handler(stub)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield stub
        finally:
            stub.closing.set()
            server.shutdown()
            thread.join()
            path.unlink()
