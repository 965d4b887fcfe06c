"""Targets: requests to the control API and the metrics server, and answers of other processes."""

from __future__ import annotations

import io
import json
import signal
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import yarl

from ocsf_nft import unix_http
from ocsf_nft.control import etags, models
from ocsf_nft.control.query import event_query
from ocsf_nft.control_request import ControlSocket
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.service import delivery_answers
from ocsf_nft.service.delivery_link import Frame, Kind
from tests.fuzz import parts
from tests.fuzz.http_peer import Application, Peer
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from collections.abc import Callable

_SANDBOX: Final = {
    "netns": "agent",
    "proxy": ["10.0.0.1:3128", "[fd00::1]:3128"],
    "profile": "sandbox",
    "allow": ["tcp:10.0.0.0/8:443", "udp:[fd00::/16]:53"],
    "install": True,
    "permissive": False,
    "source": "nflog",
    "group": 5,
    "labels": {"team": "a"},
}
_CONTAINER: Final = {
    "id": "0123456789abcdef",
    "pid": 42,
    "netns": "/proc/42/ns/net",
    "network": "own",
    "name": "web",
    "runtime": "docker",
    "image": "nginx",
    "labels": {"a": "b"},
    "annotations": {"c": "d"},
    "pod": {"name": "p", "namespace": "n", "uid": "u"},
    "sandbox": {"proxy": ["10.0.0.1:3128"]},
}
_STATUS: Final = {
    "sinks": [
        {
            "name": "file",
            "fault": None,
            "done": 1,
            "delivered": 1,
            "refused": 0,
            "failures": 0,
            "dead": 0,
        }
    ],
    "acknowledged": {"file": 7},
    "sync": 3,
    "dropped": [["file", 2]],
    "faults": ["a"],
    "storage_fault": "disk full",
}
_RESOLVED: Final = [
    1,
    "proxy.example",
    {
        "4": {"addresses": ["192.0.2.1", "127.0.0.1"], "ttl": 60, "is_absent": False},
        "6": {"error": "no name server has answered"},
    },
]
_LOG: Final = {"level": "warning", "event": "a sink is down", "sink": "file", "count": 3}
_OPENED: Final = [3, {"kind": "DeliveryError", "reason": "no"}]
_FRAMES: Final[dict[bytes, tuple[Kind, Callable[[Frame], Any], object]]] = {
    b"s": (Kind.STATUS, delivery_answers.status, _STATUS),
    b"r": (Kind.RESOLVED, delivery_answers.resolved, _RESOLVED),
    b"l": (Kind.LOG, delivery_answers.log_record, _LOG),
    b"o": (Kind.OPENED, delivery_answers.answer, _OPENED),
    b"c": (Kind.CLOSED, delivery_answers.closed, _OPENED[1]),
}
_HTTP_WORDS: Final = (
    *HOSTILE_TEXT,
    b"\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"GET ",
    b"Transfer-Encoding: chunked\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/1.1",
    b"HTTP/9.9",
    b"Host: a\r\n",
    b'If-Match: "a", "b"\r\n',
    b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"%00",
    b"%ff",
    b"?last=5&follow=1",
    b"?a=1&a=1",
    b"//",
    b"/../",
    b"Content-Encoding: gzip\r\n",
    b"0\r\n\r\n",
)
_REQUESTS: Final = (
    b"GET /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /v1/sandboxes/agent HTTP/1.0\r\n\r\nGET /v1/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n",
    b'DELETE /v1/sandboxes/agent?x=1 HTTP/1.1\r\nHost: localhost\r\nIf-Match: "a"\r\n\r\n',
    b"PUT /v1/sandboxes/agent HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 43\r\n\r\n" + b'{"netns": "agent", "proxy": "10.0.0.1:3128"}'[:43],
    (
        b"PUT /v1/containers/0123 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'14\r\n{"id": "a", "pid":1}\r\n0\r\n\r\n'
    ),
    b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
)
_ANSWERS: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"changes":[]}',
    b'HTTP/1.1 404 Not Found\r\nContent-Length: 32\r\n\r\n{"detail":"there is no sandbox"}',
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\n\r\n',
)
_QUERIES: Final = (
    b"sandbox=agent&class=4001,2004&severity=high&since=12h&until=2026-11-30T10:00:00Z&last=5",
    b"after=0123&follow=1&uid=1",
    b"since=2026-11-30&last=0",
)
_HEADERS: Final = (b'"0a1b"', b'"a", "b" ,"c"', b"*", b'W/"a"')


def _sandbox(data: bytes) -> None:
    models.sandbox_of("agent", data)


def _container(data: bytes) -> None:
    models.facts_of(data)


def _if_match(data: bytes) -> None:
    etags.condition_of("agent", data.decode("latin-1"))


def _query(data: bytes) -> None:
    try:
        query = yarl.URL(f"/v1/events?{data.decode('latin-1')}", encoded=True).query
    except ValueError:  # of aiohttp, which then answers 400
        return
    event_query(cast("Any", SimpleNamespace(query=query)))


def _frame(data: bytes) -> None:
    # The first byte selects the kind of the frame.
    kind, decode, _ = _FRAMES.get(data[:1], _FRAMES[b"s"])
    found = decode(Frame(kind, data[1:]))
    if isinstance(found, delivery_answers.NameAnswer):
        require(found.name.isprintable(), "a name is not printable")


class _Answer:
    """Socket of a client, with one answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)

    def sendall(self, _data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class _Client(unix_http._Connection):
    answer = b""

    def connect(self) -> None:
        self.sock = cast("Any", _Answer(type(self).answer))


def _answer(data: bytes) -> None:
    before, unix_http._Connection = unix_http._Connection, _Client  # type: ignore[misc] # a class
    _Client.answer = data
    try:
        ControlSocket("/run/a.sock", 5.0).request("GET", "/v1/status")
    finally:
        unix_http._Connection = before  # type: ignore[misc] # as above
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@cache
def _api() -> Peer:
    return Peer(Application.control())


@cache
def _metrics() -> Peer:
    return Peer(Application.metrics())


def _http(data: bytes) -> None:
    _api().exchange(data)


def _http_metrics(data: bytes) -> None:
    _metrics().exchange(data)


def _seed(value: object, kind: bytes = b"") -> bytes:
    return kind + json.dumps(value).encode()


def _scrapes() -> list[bytes]:
    return [
        b"GET /%s HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n" % path
        for path in (b"metrics", b"healthz", b"readyz", b"")
    ]


TARGETS: Final = (
    Target(
        name="api-sandbox",
        parse=_sandbox,
        seeds=lambda: (_seed(_SANDBOX),),
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=2,
    ),
    Target(
        name="api-container",
        parse=_container,
        seeds=lambda: (_seed(_CONTAINER),),
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=2,
    ),
    Target(
        name="api-if-match",
        parse=_if_match,
        seeds=lambda: _HEADERS,
        parts=parts.words,
        documented=(OcsfNftError,),
        hostile=(*HOSTILE_TEXT, b'","', b'"" '),
        limit=8192,
        share=2,
    ),
    Target(
        name="api-query",
        parse=_query,
        seeds=lambda: _QUERIES,
        parts=parts.words,
        documented=(OcsfNftError,),
        hostile=(*HOSTILE_TEXT, b"&", b"=", b"%0a", b"last=", b"since="),
        limit=8192,
        share=1,
    ),
    Target(
        name="api-http",
        parse=_http,
        seeds=lambda: _REQUESTS,
        parts=parts.lines,
        hostile=_HTTP_WORDS,
        limit=32_768,
        share=0.5,
    ),
    Target(
        name="metrics-http",
        parse=_http_metrics,
        seeds=_scrapes,
        parts=parts.lines,
        hostile=_HTTP_WORDS,
        limit=32_768,
        share=0.5,
    ),
    Target(
        name="api-answer",
        parse=_answer,
        seeds=lambda: _ANSWERS,
        parts=parts.lines,
        documented=(OcsfNftError,),
        hostile=(*_HTTP_WORDS, *HOSTILE_JSON),
        limit=65_536,
        share=1,
    ),
    Target(
        name="delivery-frame",
        parse=_frame,
        seeds=lambda: [_seed(value, kind) for kind, (_, _, value) in _FRAMES.items()],
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=4,
    ),
)
