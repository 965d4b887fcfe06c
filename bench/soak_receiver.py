"""Receiver of the soak's HTTP sink: it answers, is dead, or hangs."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator


class Receiver:
    """HTTP server in a thread, which keeps the ``metadata.uid`` of each received event."""

    def __init__(self) -> None:
        self.uids: set[str] = set()
        self._answers = threading.Event()
        self._answers.set()
        self._server = self._listening(0)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        """End the server."""
        self._answers.set()
        self._end()

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """Refuse connections during the context."""
        self._end()
        try:
            yield
        finally:
            self._server = self._listening(self.port)
            self._serve()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept requests during the context, and answer none."""
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def _end(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _listening(self, port: int) -> ThreadingHTTPServer:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._answers.wait()
                receiver.uids.update(
                    json.loads(line)["metadata"]["uid"] for line in body.splitlines()
                )
                with contextlib.suppress(OSError):  # the sink did not wait for the answer
                    self.send_response(200)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                """Write nothing: a request is no news."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        return Server(("127.0.0.1", port), Handler)
