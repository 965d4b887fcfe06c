"""HTTP over a Unix socket: one request and one answer with JSON, within a time limit.

The module http.client is not used: importing it takes a third of the time that a program for a
container engine takes to start.
"""

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

#: Maximum size of an answer that is read, with its header.
_MOST_BYTES: Final = 1 << 20
_PART_BYTES: Final = 64 << 10
#: With version 1.0, the end of the answer is the end of the connection (RFC 1945).
_HEADER: Final = """\
{method} {target} HTTP/1.0\r
Host: localhost\r
Content-Type: application/json\r
Content-Length: {length}\r
\r
"""


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
    content = b"" if body is None else json.dumps(body).encode()
    header = _HEADER.format(method=method, target=target, length=len(content))
    before = signal.signal(signal.SIGALRM, _expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        status, answer = _parsed(_answer(path, header.encode("ascii") + content))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    try:
        found = json.loads(answer) if answer else {}
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - as for other bad JSON
    return status, found


def _expire(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _answer(path: str, request: bytes) -> bytes:
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.sendall(request)
        while part := connection.recv(_PART_BYTES):
            answer += part
            if len(answer) > _MOST_BYTES:
                raise ValueError("the answer is too large")
    return answer


def _parsed(answer: bytes) -> tuple[int, bytes]:
    """Return the status and the content of an answer."""
    header, end, content = answer.partition(b"\r\n\r\n")
    first, *lines = header.split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if answer and not version.startswith(b"HTTP/1."):
        raise ValueError("the answer is no HTTP")
    fields = {name.strip().lower(): value for name, _, value in (x.partition(b":") for x in lines)}
    if not end or len(content) < int(fields.get(b"content-length", 0)):
        raise ConnectionResetError("the connection was closed")
    return int(rest[:3]), content
