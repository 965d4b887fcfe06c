"""Targets: answers of receivers of events and of name servers."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from ocsf_nft.delivery import name_resolver
from ocsf_nft.delivery.name_resolver import NameResolver, ResolverFiles
from ocsf_nft.delivery.object_storage import Bucket
from ocsf_nft.delivery.receiver_settings import Receiver
from ocsf_nft.delivery.sinks import http_client
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.http_client import HttpAnswer, HttpSession
from ocsf_nft.delivery.sinks.nats import Nats
from ocsf_nft.delivery.sinks.opensearch import OpenSearch
from ocsf_nft.delivery.sinks.otlp import Otlp
from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec
from ocsf_nft.errors import DeliveryError
from tests.fuzz import memory_folder, parts
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ocsf_nft.delivery.sinks.base import Sink

_MESSAGES: Final = [Message(f"u{number}", b'{"time":1764000000000}') for number in range(2)]
_RECEIVER: Final = Receiver(url="http://receiver.test/x", is_compressed=False)
_BULK: Final = {
    "errors": True,
    "items": [
        {"create": {"status": 201}},
        {"create": {"status": 400, "error": {"type": "mapper_parsing_exception", "reason": "no"}}},
    ],
}
_ANSWERS: Final[tuple[tuple[bytes, int, object], ...]] = (
    (b"o", 200, _BULK),
    (b"o", 429, {"error": "busy"}),
    (b"s", 200, {"text": "Success", "code": 0}),
    (b"s", 400, {"text": "Invalid data format", "code": 6, "invalid-event-number": 1}),
    (b"t", 200, {"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "no"}}),
    (b"t", 200, {}),
    (b"o", 302, "moved"),
)
_NATS: Final = (
    {"stream": "ocsf", "seq": 7},
    {"error": {"code": 503, "err_code": 10_054, "description": "too large"}},
)
_S3: Final = (
    (
        b"Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned non-2xx "
        b"status code: 403 Forbidden: <Error><Code>AccessDenied</Code><Message>no</Message>"
        b"</Error>\n\nDebug source:\nx"
    ),
    (
        b"Generic S3 error: Error performing PUT - HTTP error: error sending request\n\n"
        b'Debug source:\nGeneric { source: hyper::Error(Connect, ConnectError("tcp connect '
        b'error")), kind: Connect }'
    ),
)
_AFTER: Final = (b"5", b"Wed, 21 Oct 2026 07:28:00 GMT", b"Wed, 21 Oct 2026 07:28:00 +0100")
_HOSTS: Final = (
    (
        b"127.0.0.1 localhost\n# 192.0.2.9 proxy.test\n192.0.2.5\tOther proxy.test # x\n"
        b"fd00::5 proxy.test\nfe80::1%lo proxy.test\n"
    ),
)
_NAME: Final = "proxy.test"
#: The library has no types for it.
_ABSENT: Final[Any] = dns.resolver.NXDOMAIN
_MOST_TEXT: Final = 2000


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return _loop().run_until_complete(coroutine)


def _sink(kind: bytes) -> Sink:
    if kind == b"s":
        return SplunkHec(receiver=_RECEIVER)
    return Otlp(receiver=_RECEIVER) if kind == b"t" else OpenSearch(receiver=_RECEIVER)


def _answer(data: bytes) -> None:
    # First the kind of the sink, and the status in three digits.
    kind, digits, body = data[:1], data[1:4], data[4:]
    status = int(digits) if digits.isdigit() and digits.isascii() else 200
    sink = _sink(kind)

    async def request(*_arguments: object, **_options: object) -> HttpAnswer:
        await asyncio.sleep(0)
        return HttpAnswer(status=status, body=body, after_seconds=None)

    cast("Any", sink).request = request
    try:
        result = _run(sink.deliver(_MESSAGES))
    except DeliveryError as error:
        require(str(error).isprintable(), "an error is not printable")
        require(len(str(error)) < _MOST_TEXT, "an error is long")
        raise
    known = {*_MESSAGES}
    require(known >= {*(each.message for each in result.refused), *result.again}, "a new message")


def _nats(data: bytes) -> None:
    sink = Nats(servers=["nats://n"], subject="ocsf")
    answer = SimpleNamespace(headers=None, data=data)
    connection = SimpleNamespace(secrets=("secret",))
    found = sink._rejection(cast("Any", answer), cast("Any", connection))
    require(found is None or found.reason.isprintable(), "a reason is not printable")


def _s3(data: bytes) -> None:
    error = Bucket(name="b", region="r")._failure(Exception(data.decode("utf-8", "replace")))
    require(str(error).isprintable(), "an error is not printable")


def _retry_after(data: bytes) -> None:
    found = http_client._retry_after_seconds(data.decode("utf-8", "surrogateescape"))
    require(found is None or found >= 0, "a pause is negative")


def _receiver_text(data: bytes) -> None:
    answer = HttpAnswer(status=500, body=data, after_seconds=None)
    text = HttpSession(_RECEIVER).describe(answer)
    require(text.isprintable() and len(text) < _MOST_TEXT, "a text is not printable")


@cache
def _resolver() -> NameResolver:
    path = memory_folder.folder() / "hosts"
    return NameResolver(ResolverFiles(path, path))


def _hosts(data: bytes) -> None:
    _resolver()._files.hosts.write_bytes(data)
    _resolver()._listed(_NAME)


def _name_server(data: bytes) -> None:
    class Stub:
        async def resolve(self, name: str, kind: str, **_options: object) -> Any:
            await asyncio.sleep(0)
            message = dns.message.from_wire(data)
            if message.rcode() == dns.rcode.NXDOMAIN:
                raise _ABSENT(qnames=[name], responses={name: message})
            rdtype = dns.rdatatype.from_text(kind)
            return dns.resolver.Answer(dns.name.from_text(name), rdtype, dns.rdataclass.IN, message)  # type: ignore[arg-type] # maybe no answer

    resolver = NameResolver(ResolverFiles())
    cast("Any", resolver)._present = Stub
    for kind in name_resolver._TYPES.values():
        found = _run(resolver._ask(_NAME, kind))
        require("error" in found or len(found["addresses"]) <= name_resolver.MAX_ADDRESSES, "many")
        json.dumps(found)


def _wires() -> list[bytes]:
    found = []
    for kind, text in (("A", "192.0.2.1"), ("AAAA", "2001:db8::1"), ("CNAME", "other.test.")):
        query = dns.message.make_query(f"{_NAME}.", "AAAA" if kind == "AAAA" else "A", id=1)
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(f"{_NAME}.", 60, "IN", kind, text))
        found.append(answer.to_wire())
    names = [f"{_NAME}.", *(f"{number}.test." for number in range(20))]
    chain = dns.message.make_response(dns.message.make_query(names[0], "A", id=1))
    for name, other in pairwise(names):
        chain.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", other))
    found.append(chain.to_wire())
    chain.set_rcode(dns.rcode.NXDOMAIN)
    found.append(chain.to_wire())
    return found


def _answer_seeds() -> list[bytes]:
    return [
        b"%b%d%b" % (kind, status, json.dumps(body).encode()) for kind, status, body in _ANSWERS
    ]


TARGETS: Final = (
    Target(
        name="receiver-answer",
        parse=_answer,
        seeds=_answer_seeds,
        parts=parts.json_values,
        documented=(DeliveryError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=0.5,
    ),
    Target(
        name="receiver-text",
        parse=_receiver_text,
        seeds=_answer_seeds,
        parts=parts.words,
        hostile=(*HOSTILE_TEXT, b"password=a", b"Bearer 12345678"),
        limit=65_536,
        share=2,
    ),
    Target(
        name="nats-answer",
        parse=_nats,
        seeds=lambda: [json.dumps(each).encode() for each in _NATS],
        parts=parts.json_values,
        documented=(DeliveryError,),
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=2,
    ),
    Target(
        name="s3-answer",
        parse=_s3,
        seeds=lambda: _S3,
        parts=parts.words,
        hostile=(*HOSTILE_TEXT, b"<Code>", b"non-2xx status code: 413"),
        limit=65_536,
        share=1,
    ),
    Target(
        name="retry-after",
        parse=_retry_after,
        seeds=lambda: _AFTER,
        parts=parts.words,
        hostile=HOSTILE_TEXT,
        limit=8192,
        share=2,
    ),
    Target(
        name="hosts-file",
        parse=_hosts,
        seeds=lambda: _HOSTS,
        parts=parts.lines,
        hostile=(*HOSTILE_TEXT, b"\xc2\x85", b"#"),
        limit=65_536,
        share=1,
    ),
    Target(
        name="name-server",
        parse=_name_server,
        seeds=_wires,
        parts=parts.dns_labels,
        hostile=(b"\xc0\x0c", b"\xc0\x00", b"\x3f" + b"a" * 63),
        limit=4096,
        share=1,
    ),
)
