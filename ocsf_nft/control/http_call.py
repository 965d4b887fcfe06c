"""Calls of the control API with the standard library alone, for programs that must start fast."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ocsf_nft.control import answers

if TYPE_CHECKING:
    from pathlib import Path


class _UnixConnection(http.client.HTTPConnection):
    """Connection of :mod:`http.client` to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=answers.ANSWER_SECONDS)
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


def call(
    control: Path,
    method: str,
    target: str,
    body: object = None,
    *,
    if_match: str | None = None,
) -> Any:
    """Send a request to the service at the socket ``control``, and return its JSON answer.

    Blocks. ``body`` is sent as JSON unless it is None. ``if_match`` is the ``etag`` of the sandbox
    that the request is for: raises ChangedError if that has changed. Raises the error that the service reports
    (the same class with the same sentence), AbsentError if no service listens, UnsupportedError if
    connecting is not permitted, DeliveryError if the answer does not arrive.
    """
    connection = _UnixConnection(control)
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
        raise answers.late(control) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise answers.interrupted(control, str(error) or type(error).__name__) from error
    finally:
        connection.close()


def sandbox_target(name: str) -> str:
    """Return the path of a sandbox; a wrong name is quoted, so that the service refuses it."""
    return f"/v1/sandboxes/{quote(name, safe='')}"
