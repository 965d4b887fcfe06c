"""Errors of the control API as problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from ocsf_nft.control.problem_types import type_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.errors import OcsfNftError

CONTENT_TYPE: Final = "application/problem+json"
#: Headers of aiohttp's own errors that belong to the answer.
_OWN_HEADERS: Final = ("Allow",)
#: Sentences about errors that aiohttp finds.
_DETAILS: Final[dict[int, str]] = {
    400: "the request is no valid HTTP/1.1, or a header has more than 8 KiB: correct it",
    403: "the delivery process may not use the control API: connect from another process",
    404: "there is nothing at this path: GET /v1/openapi.json lists the paths",
    405: "this path has no such method: the header Allow lists its methods",
    408: "the request did not arrive in time: send it at once",
    411: "the length of the body is missing: send the header Content-Length",
    413: "the body is too large: send at most 64 KiB",
    417: "this expectation can't be met: leave out the header Expect",
    500: "the service failed to answer: its log has the cause; please report it as a bug",
    503: "too many clients are connected: close some, or try again later",
}


#: Maximum number of characters of a sentence, which may quote a wrong value.
_MOST_CHARACTERS: Final = 800


class Problem(BaseModel):
    """Error: its kind, and one sentence with the cause and the remedy."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: str
    """Kind of the error, such as urn:ocsf-nft:problem:absent; about:blank for one of HTTP."""
    title: str
    """Name of the HTTP status."""
    status: int
    """The HTTP status."""
    detail: str
    """One sentence: the cause and the remedy."""


def problem(
    status: int, detail: str | None = None, *, kind: str = "about:blank",
    headers: Mapping[str, str] | None = None,
) -> web.Response:  # fmt: skip
    """Return the answer with a problem document; ``status`` has a default for ``detail``."""
    phrase = HTTPStatus(status).phrase
    document = Problem(
        type=kind, title=phrase, status=status, detail=detail or _DETAILS.get(status) or phrase
    )
    return web.Response(
        status=status, body=_encoded(document), content_type=CONTENT_TYPE, headers=headers
    )


def of_error(error: OcsfNftError) -> web.Response:
    """Return the answer to a call that failed with an error of this package."""
    known = type_of(error)
    return problem(known.status, str(error), kind=known.urn)


def of_http(error: web.HTTPException) -> web.Response:
    """Return the answer in place of one of aiohttp's own, such as 404."""
    headers = {name: error.headers[name] for name in _OWN_HEADERS if name in error.headers}
    return problem(error.status, headers=headers)


def raw(status: int) -> bytes:
    """Return a complete HTTP response that closes the connection, in place of an answer."""
    phrase = HTTPStatus(status).phrase
    body = _encoded(
        Problem(type="about:blank", title=phrase, status=status, detail=_DETAILS[status])
    )
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _encoded(document: Problem) -> bytes:
    # A sentence may quote a name that is not valid UTF-8.
    text = document.detail.encode("utf-8", "backslashreplace").decode()
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    return document.model_copy(update={"detail": text}).model_dump_json().encode() + b"\n"
