"""Receivers with HTTP, which check requests by the rules of their documentation."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any, Final

from aiohttp import web

from tests.delivery.sinks.servers import (
    AnyJson,
    Bulk,
    Collector,
    Hec,
    Server,
    attributes,
    serving,
)
from tests.delivery.trials.receivers import RIGHT, Receiver, Setting, uid_of
from tests.delivery.trials.relay import Relay
from tests.ports import free_port

#: A text that no event has.
_NOTHING: Final = b"\0 nothing at all \0"


class OverHttp(Receiver):
    """One of the servers at its port; through a relay if the setting ``is_slow``."""

    kind: str
    refusal_text: str
    #: The key of its secret in the table, and the scheme in the request.
    shown: tuple[str, str]

    def __init__(self, setting: Setting, server: Server) -> None:
        self.server = server
        self._setting = setting
        self._port = free_port()
        self._relay = Relay(self._port)
        self._died = asyncio.Event()
        self._up = AsyncExitStack()
        key, scheme = self.shown
        self._key = key
        if setting.is_locked:
            server.authorization = f"{scheme} {RIGHT}"

    @property
    def table(self) -> dict[str, Any]:
        port = self._relay.port if self._setting.is_slow else self._port
        scheme = "http" if self._setting.certificates is None else "https"
        return {
            "type": self.kind,
            "url": f"{scheme}://127.0.0.1:{port}",
            **({"timeout_seconds": 0.5} if self._setting.is_slow else {}),
            **self._setting.tls,
            **self._setting.secrets(self._key),
        }

    async def start(self) -> None:
        certificates = self._setting.certificates
        context = None if certificates is None else certificates.context("127.0.0.1")
        await self._up.enter_async_context(serving(self.server, tls=context, port=self._port))
        if self._setting.is_slow:
            await self._relay.open()
            self._up.push_async_callback(self._relay.close)

    async def kill(self) -> None:
        """Accept the next request, and stop before the answer."""
        self._died.clear()
        self.server.then(self._dies)
        async with asyncio.timeout(60):
            await self._died.wait()
        await self.end()

    async def end(self) -> None:
        await self._up.aclose()

    async def uids(self) -> list[str]:
        return [uid_of(line) for line in self.server.lines]

    async def stop_answering(self) -> None:
        self._relay.may_pass.clear()

    async def answer_slowly(self, seconds: float) -> None:
        self._relay.seconds = seconds
        self._relay.may_pass.set()

    async def accept_refused(self) -> None:
        self.server.poison = _NOTHING

    async def _dies(self, request: web.Request) -> web.StreamResponse:
        self.server.judge(request, await request.read())
        assert request.transport is not None
        request.transport.abort()
        self._died.set()
        return web.Response()


class _Strict(AnyJson):
    """Server with long refusals that contain control characters."""

    def judge(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self.poison in body:
            return web.Response(status=422, text="no event\n of \x1b[2J this kind " + "x" * 5000)
        return super().judge(request, body)


class AnyHttp(OverHttp):
    """Any server that accepts NDJSON."""

    kind = "http"
    refusal_text = "no event of ?[2J this kind"
    shown = ("bearer", "Bearer")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, _Strict())


class _Indexer(Hec):
    """Indexer that drops unconfirmed events when it stops."""

    def __init__(self) -> None:
        super().__init__(with_ack=True, keeps_the_first=True)
        self._in_memory: dict[tuple[str | None, int], list[dict[str, Any]]] = {}

    def _take(self, body: bytes, channel: str | None) -> web.Response:
        known = len(self.envelopes)
        answer = super()._take(body, channel)
        number = json.loads(answer.text or "").get("ackId", -1)
        self._in_memory[channel, number] = self.envelopes[known:]
        return answer

    def _confirm(self, body: bytes, channel: str | None) -> web.Response:
        answer = super()._confirm(body, channel)
        for number, is_on_disk in json.loads(answer.text or "").get("acks", {}).items():
            if is_on_disk:
                self._in_memory.pop((channel, int(number)), None)
        return answer

    def drop_unconfirmed(self) -> None:
        dropped = {id(each) for batch in self._in_memory.values() for each in batch}
        self.envelopes = [each for each in self.envelopes if id(each) not in dropped]
        self._in_memory.clear()
        self._acks.clear()


class Splunk(OverHttp):
    """Splunk's collector, with or without indexer acknowledgement."""

    kind = "splunk_hec"
    refusal_text = "Invalid data format"
    shown = ("token", "Splunk")

    def __init__(self, setting: Setting, *, with_ack: bool = False) -> None:
        super().__init__(setting, _Indexer() if with_ack else Hec(keeps_the_first=True))
        self._with_ack = with_ack
        if not setting.is_locked:
            setting.secret.write_text(RIGHT)

    @property
    def table(self) -> dict[str, Any]:
        found = super().table
        if self._with_ack:
            is_slow = self._setting.is_slow
            # An acknowledgement takes at least two answers.
            found |= {
                "ack_seconds": 0.8 if is_slow else 20.0,
                "timeout_seconds": 1.0 if is_slow else 25.0,
            }
        return found | {"token": {"file": str(self._setting.secret)}}

    async def kill(self) -> None:
        await super().kill()
        if isinstance(self.server, _Indexer):
            self.server.drop_unconfirmed()


class OpenSearch(OverHttp):
    """OpenSearch, which stores a document once."""

    kind = "opensearch"
    refusal_text = "mapper_parsing_exception: failed to parse"
    shown = ("api_key", "ApiKey")
    server: Bulk

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Bulk())

    async def uids(self) -> list[str]:
        return [uid for _, uid in self.server.documents]


class OpenTelemetry(OverHttp):
    """An OpenTelemetry collector."""

    kind = "otlp"
    refusal_text = "no such?[2J record"
    shown = ("bearer", "Bearer")
    server: Collector

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Collector())

    async def uids(self) -> list[str]:
        return [attributes(each.attributes)["log.record.uid"] for each in self.server.records]
