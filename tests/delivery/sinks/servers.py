"""HTTP servers for sinks, which check their requests strictly.

Each server answers 400 to requests that its documentation does not allow, and stores accepted
events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from multidict import CIMultiDictProxy
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

    Behaviour: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Text in an event that a server refuses.
POISON = b"poison"


@dataclass(frozen=True)
class Seen:
    """Received request."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    #: Decompressed.
    body: bytes


@dataclass(kw_only=True)
class Server:
    """Server that stores requests; :meth:`then` sets the behaviour for the next ones."""

    seen: list[Seen] = field(default_factory=list)
    #: Set at the start of each request.
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    #: Required header ``Authorization``.
    authorization: str | None = None
    #: Text in events that it refuses.
    poison: bytes = POISON
    _behaviours: deque[Behaviour] = field(default_factory=deque)

    def then(self, *behaviours: Behaviour) -> None:
        self._behaviours += behaviours

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return self.answer_get(request)
        self.asked.set()
        body = await request.read()
        self.seen.append(Seen(request.method, request.path_qs, request.headers, body))
        if self._behaviours:
            return await self._behaviours.popleft()(request)
        if self.authorization not in {None, request.headers.get("Authorization")}:
            return web.json_response({"text": "Invalid token", "code": 4}, status=403)
        return self.judge(request, body)

    def answer_get(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        raise NotImplementedError

    @property
    def lines(self) -> list[bytes]:
        """Stored events, byte for byte."""
        raise NotImplementedError


@contextlib.asynccontextmanager
async def serving(
    server: Server, *, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[str]:
    """Run a server and yield its URL."""
    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0]
        yield f"http{'s' if tls else ''}://{host}:{port}"
    finally:
        await runner.cleanup()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def answering(status: int, text: str = "", **headers: str) -> Behaviour:
    async def behave(_: web.Request) -> web.StreamResponse:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=fields)

    return behave


async def cuts(request: web.Request) -> web.StreamResponse:
    """Answer 200 with half of the body, and abort the connection."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"text":"Succ')
    assert request.transport is not None
    request.transport.abort()
    return response


async def dies(request: web.Request) -> web.StreamResponse:
    """Abort the connection before any answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def floods(status: int, sent: list[int]) -> Behaviour:
    """Answer with 100 MiB in chunks of 1 MiB, and append each written number to ``sent``."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for number in range(100):
                await response.write(b"x" * (1 << 20))
                sent.append(number)
        return response

    return behave


def _json(status: int, **reply: Any) -> web.Response:
    fields = {name.replace("_", "-"): value for name, value in reply.items()}
    return web.json_response(fields, status=status)


@dataclass(kw_only=True)
class AnyJson(Server):
    """Server that accepts events as NDJSON or as a JSON array."""

    taken: list[bytes] = field(default_factory=list)

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self.poison in body:
            return _json(422, error="no event of this kind")
        if request.content_type == "application/x-ndjson":
            if not body.endswith(b"\n"):
                return _json(400, error="a line that has no end")
            lines = body[:-1].split(b"\n")
        elif request.content_type == "application/json":
            lines = [_text(each) for each in json.loads(body)]
        else:
            return _json(415, error="no type that is known here")
        if not all(isinstance(json.loads(line), dict) for line in lines):
            return _json(400, error="no object")
        self.taken += lines
        return web.Response(status=202)

    @property
    def lines(self) -> list[bytes]:
        return self.taken


@dataclass(kw_only=True)
class Hec(Server):
    """Splunk's HTTP Event Collector.

    If ``keeps_the_first``, it stores the events before the first invalid one of a batch.
    """

    indexes: frozenset[str] = frozenset({"main", "ocsf"})
    with_ack: bool = False
    #: Number of polls for an acknowledgement before the events are indexed.
    polls: int = 1
    keeps_the_first: bool = False
    #: Offset of the number of an invalid event: some versions count differently.
    miscount: int = 0
    is_healthy: bool = True
    #: Status for a health request, if there is no health endpoint.
    no_health: int | None = None
    envelopes: list[dict[str, Any]] = field(default_factory=list)
    channels: set[str] = field(default_factory=set)
    _acks: dict[str, dict[int, int]] = field(default_factory=dict)

    _KEYS = frozenset({"time", "host", "source", "sourcetype", "index", "event", "fields"})

    def answer_get(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/services/collector/health":
            return web.Response(status=404)
        if self.no_health is not None:
            return web.Response(status=self.no_health)
        if not self.is_healthy:
            return _json(503, text="HEC is unhealthy, queues are full", code=18)
        if self.authorization not in {None, request.headers.get("Authorization")}:
            return _json(400, text="Invalid token", code=21)
        return _json(200, text="HEC is healthy", code=17)

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if not re.fullmatch(r"Splunk \S+", request.headers.get("Authorization", "")):
            return _json(401, text="Invalid authorization", code=3)
        channel = request.headers.get("X-Splunk-Request-Channel")
        if self.with_ack:
            if channel is None:
                return _json(400, text="Data channel is missing", code=10)
            if str(uuid.UUID(channel)) != channel:
                return _json(400, text="Invalid data channel", code=11)
            self.channels.add(channel)
        if request.path == "/services/collector/event":
            return self._take(body, channel)
        if request.path == "/services/collector/ack":
            return self._confirm(body, channel)
        return _json(404, text="The requested URL was not found on this server.", code=404)

    def _take(self, body: bytes, channel: str | None) -> web.Response:
        if not body:
            return _json(400, text="No data", code=5)
        taken: list[dict[str, Any]] = []
        for number, envelope in enumerate(_concatenated(body.decode())):
            text, code = self._fault(envelope)
            if code:
                if self.keeps_the_first:
                    self.envelopes += taken
                return _json(400, text=text, code=code, invalid_event_number=number + self.miscount)
            taken.append(envelope)
        self.envelopes += taken
        if not self.with_ack or channel is None:
            return _json(200, text="Success", code=0)
        acks = self._acks.setdefault(channel, {})
        acks[len(acks)] = self.polls
        return _json(200, text="Success", code=0, ackId=len(acks) - 1)

    def _fault(self, envelope: Any) -> tuple[str, int]:
        if not isinstance(envelope, dict) or envelope.keys() - self._KEYS:
            return "Invalid data format", 6
        if not isinstance(envelope.get("time", 0.0), float | int):
            return "Invalid data format", 6
        if "event" not in envelope:
            return "Event field is required", 12
        if not envelope["event"]:
            return "Event field cannot be blank", 13
        if envelope.get("index", "main") not in self.indexes:
            return "Incorrect index", 7
        if self.poison.decode() in json.dumps(envelope["event"]):
            return "Invalid data format", 6
        return "", 0

    def _confirm(self, body: bytes, channel: str | None) -> web.Response:
        if not self.with_ack or channel is None:
            return _json(400, text="ACK is disabled", code=14)
        asked = json.loads(body)
        if asked.keys() != {"acks"} or not all(isinstance(each, int) for each in asked["acks"]):
            return _json(400, text="Invalid data format", code=6)
        known = self._acks.get(channel, {})
        acknowledged = {}
        for each in asked["acks"]:
            left = known.get(each, 1)
            acknowledged[str(each)] = left == 0
            # Each acknowledgement is sent once.
            known[each] = left - 1 if left else 1 << 30
        return _json(200, acks=acknowledged)

    @property
    def lines(self) -> list[bytes]:
        return [_text(each["event"]) for each in self.envelopes]


def _concatenated(text: str) -> Iterator[Any]:
    """Yield JSON values one after another, as a collector reads them; None for invalid JSON."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            value, end = decoder.raw_decode(text)
        except json.JSONDecodeError:
            yield None
            return
        yield value
        text = text[end:]


@dataclass(kw_only=True)
class Bulk(Server):
    """OpenSearch's bulk API.

    ``statuses`` has the status and the kind of error of documents, by their identifiers.
    """

    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    documents: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if request.path != "/_bulk":
            return self._error(404, "no handler found")
        if request.content_type not in {"application/x-ndjson", "application/json"}:
            return self._error(
                406, f"Content-Type header [{request.content_type}] is not supported"
            )
        if not body.endswith(b"\n"):
            return self._error(400, "The bulk request must be terminated by a newline [\\n]")
        lines = body[:-1].split(b"\n")
        if len(lines) % 2:
            return self._error(400, "Malformed action/metadata line")
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            ((operation, target),) = json.loads(action).items()
            if operation != "create" or target.keys() != {"_index", "_id"}:
                return self._error(400, f"Malformed action/metadata line {action!r}")
            items.append({"create": self._create(target["_index"], target["_id"], document)})
        errors = any("error" in item["create"] for item in items)
        return _json(200, took=1, errors=errors, items=items)

    def _create(self, index: str, uid: str, document: bytes) -> dict[str, Any]:
        status, kind = self.statuses.get(uid, (201, ""))
        if self.poison in document:
            status, kind = 400, "mapper_parsing_exception"
        if (index, uid) in self.documents:
            status, kind = 409, "version_conflict_engine_exception"
        item: dict[str, Any] = {"_index": index, "_id": uid, "status": status}
        if status != 201:
            return item | {"error": {"type": kind, "reason": f"failed to parse [{uid}]\x1b[2J"}}
        self.documents[index, uid] = document
        return item | {"result": "created", "_version": 1, "_seq_no": 0}

    def _error(self, status: int, reason: str) -> web.Response:
        error = {"type": "illegal_argument_exception", "reason": reason}
        return web.json_response({"error": error, "status": status}, status=status)

    @property
    def lines(self) -> list[bytes]:
        return list(self.documents.values())


@dataclass(kw_only=True)
class Collector(Server):
    """OpenTelemetry collector for OTLP over HTTP with JSON; it refuses records with poison."""

    taken: list[ResourceLogs] = field(default_factory=list)

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if request.path != "/v1/logs":
            return web.Response(status=404)
        if request.content_type != "application/json":
            return web.Response(status=415)
        try:
            export = json_format.Parse(body, ExportLogsServiceRequest())
        except json_format.ParseError as error:
            return _json(400, code=3, message=str(error))
        rejected = 0
        for resource in export.resource_logs:
            for scope in resource.scope_logs:
                good = [each for each in scope.log_records if not self._is_poisonous(each)]
                rejected += len(scope.log_records) - len(good)
                del scope.log_records[:]
                scope.log_records.extend(good)
            self.taken.append(resource)
        if not rejected:
            return _json(200)
        fault = {"rejectedLogRecords": str(rejected), "errorMessage": "no such\x1b[2J record"}
        return _json(200, partialSuccess=fault)

    def _is_poisonous(self, record: LogRecord) -> bool:
        return self.poison in record.body.SerializeToString()

    @property
    def records(self) -> list[LogRecord]:
        return [
            record
            for resource in self.taken
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def lines(self) -> list[bytes]:
        return [_text(plain(record.body)) for record in self.records]


def plain(value: Any) -> Any:
    """Convert an AnyValue of OTLP to a JSON value."""
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes(pairs: Any) -> Mapping[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


def _text(event: Any) -> bytes:
    """Encode an event as orjson does, in the same bytes as our events."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
