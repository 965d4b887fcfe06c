"""HTTP over a Unix socket: one request and one answer with JSON, within a time limit."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

#: Maximum size of an answer that is read.
_MOST_BYTES: Final = 1 << 20


def exchange(
    path: str, method: str, target: str, body: object, *, seconds: float
) -> tuple[int, dict[str, Any]]:
    """Send a request to the socket ``path``; return the status and the JSON object of the answer.

    ``target`` is the path of the URL. ``body`` is sent as JSON if it is not None. An answer without
    content is an empty object. The time limit is for the whole exchange. It is a timer of the
    process (SIGALRM), so call the function in the main thread only.

    Raises TimeoutError at the time limit, OSError if the connection fails, ValueError if the answer
    is no HTTP, or has no JSON object.
    """
    before = signal.signal(signal.SIGALRM, _expire)
    # An engine may have blocked it, and its programs inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        status, content = _exchange(_Connection(path), method, target, body)
    except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
        raise ConnectionResetError("the connection was closed") from error
    except http.client.HTTPException as error:
        raise ValueError("the answer is no HTTP") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    try:
        found = json.loads(content) if content else {}
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - as for other bad JSON
    return status, found


class _Connection(http.client.HTTPConnection):
    """HTTP connection over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def _expire(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _exchange(connection: _Connection, method: str, target: str, body: object) -> tuple[int, bytes]:
    try:
        sent = None if body is None else json.dumps(body).encode()
        connection.request(method, target, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if (response.length or 0) > _MOST_BYTES:
            raise ValueError("the answer is too large")
        return response.status, response.read()
    finally:
        connection.close()
