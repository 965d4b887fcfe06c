"""Calls of the control API with the standard library alone, for programs that must start fast."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ocsf_nft.control import answers

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

#: Maximum bytes of one read, and of one line.
_PART_BYTES: Final = 64 << 10
_LINE_BYTES: Final = 16 << 20


class _UnixConnection(http.client.HTTPConnection):
    """Connection of :mod:`http.client` to a Unix socket."""

    def __init__(self, path: Path, seconds: float | None) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; raises the error of :func:`answers.unreachable`."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(self.timeout)
        try:
            made.connect(str(self._path))
        except OSError as error:
            made.close()
            raise answers.unreachable(self._path, error) from error
        self.sock = made


def call(  # noqa: PLR0913 - each may be left out
    control: Path,
    method: str,
    target: str,
    body: object = None,
    *,
    if_match: str | None = None,
    seconds: float | None = None,
) -> Any:
    """Send a request to the service at the socket ``control``, and return its JSON answer.

    Blocks for at most ``seconds`` for each part of the answer, by default a minute. ``body`` is
    sent as JSON unless it is None. ``if_match`` is the ``etag`` of the sandbox that the request is
    for: raises ChangedError if that has changed. Raises the error that the service reports (the
    same class with the same sentence), AbsentError if no service listens, UnsupportedError if
    connecting is not permitted, DeliveryError if the answer does not arrive.
    """
    limit = answers.ANSWER_SECONDS if seconds is None else seconds
    connection = _UnixConnection(control, limit)
    data = None if body is None else json.dumps(body).encode()
    try:
        headers = {} if if_match is None else {"If-Match": if_match}
        connection.request(method, target, body=data, headers=headers)
        response = connection.getresponse()
        content = response.read()
        if response.status >= 400:
            raise answers.failure(response.status, content)
        return json.loads(content)
    except TimeoutError as error:
        raise answers.late(control, limit) from error
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise answers.interrupted(control, str(error) or type(error).__name__) from error
    finally:
        connection.close()


def json_lines(control: Path, target: str) -> Generator[bytes, None, None]:
    """Request events from the service at the socket ``control``, and yield their JSON Lines.

    Blocks as long as the service sends nothing. Ends when the service ends the answer. Raises the
    errors of :func:`call`; DeliveryError if lines are missing at the end.
    """
    connection = _UnixConnection(control, None)
    rest = b""
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        if response.status >= 400:
            raise answers.failure(response.status, response.read())
        while part := response.read1(_PART_BYTES):
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > _LINE_BYTES:
                raise answers.interrupted(control, f"a line has more than {_LINE_BYTES} bytes")
            yield from lines
    except (OSError, http.client.HTTPException) as error:
        raise answers.interrupted(control, str(error) or type(error).__name__) from error
    finally:
        connection.close()


def sandbox_target(name: str) -> str:
    """Return the path of a sandbox; a wrong name is quoted, so that the service refuses it."""
    return f"/v1/sandboxes/{quote(name, safe='', errors='surrogatepass')}"
