"""Events to a stream of NATS JetStream.

A message's ``Nats-Msg-Id`` is the event's uid, so that the stream takes an event once, however
often it is sent within its duplicate window (``nats stream add --dupe-window``).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson
from nats import errors

from ocsf_nft.delivery.sinks.base import Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause, printable
from ocsf_nft.delivery.sinks.loop_thread import Aside
from ocsf_nft.delivery.sinks.nats_link import Link
from ocsf_nft.delivery.sinks.nats_login import Login
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from nats.aio.msg import Msg

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.tls import Tls

#: Messages that may be without an acknowledgement at a time: a stream takes a few thousand.
_WINDOW: Final = 256
#: A stream's maximum size of a message is less than this one's (nats-server, errors.json).
_TOO_LARGE: Final = 10054
#: Headers of JetStream, and what the server says when nobody has a subject (ADR-4 of NATS).
_MESSAGE_ID: Final = "Nats-Msg-Id"
_EXPECTED_STREAM: Final = "Nats-Expected-Stream"
_STATUS: Final = "Status"
_NO_RESPONDERS: Final = "503"
_UNNAMED: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a stream says against a message; ``is_final`` when it always will."""

    reason: str
    is_final: bool


class Nats(Sink):
    """Publishes events, and waits until the stream has them all.

    The first of ``servers`` (URLs, tried in any order) that can be connected to is used. With
    ``has_class`` the event's class is a last token of the subject: ``ocsf.network_activity``.
    ``stream`` is the one that has to have the subject, None for whichever does. TLS is certain
    with a URL of ``tls://`` or with ``tls``; else it is up to the server. ``is_tls_first`` is for
    a server with ``handshake_first``.
    """

    def __init__(  # noqa: PLR0913 - what a connection and a subject are made of
        self,
        *,
        servers: Sequence[str],
        subject: str,
        has_class: bool = False,
        stream: str | None = None,
        login: Login | None = None,
        tls: Tls | None = None,
        is_tls_first: bool = False,
    ) -> None:
        self._servers = tuple(servers)
        self._subject = subject
        self._has_class = has_class
        self._stream = stream
        self._login = login or Login()
        self._tls = tls
        self._is_tls_first = is_tls_first
        self._aside = Aside("nats")
        self._link: Link | None = None

    async def open(self) -> None:
        """Connect; raises DeliveryError when no server can be connected to."""
        self._aside.begin()
        try:
            self._link = await self._aside.do(self._linked())
        except BaseException:
            await self._aside.end()
            raise

    async def close(self) -> None:
        """Cut the connection: all that was acknowledged is in the stream."""
        self._link = None
        await self._aside.end()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Publish a batch, some hundreds at a time, and wait for the acknowledgements of each.

        Raises DeliveryError when the connection is lost, or no stream has the subject.
        """
        if self._link is None:
            raise DeliveryError("no NATS server is connected to")
        return await self._aside.do(self._delivered(self._link, messages))

    async def _linked(self) -> Link:
        proof = self._login.read()
        causes = []
        for server in random.sample(self._servers, len(self._servers)):
            link = Link(server)
            try:
                await link.open(proof, tls=self._tls, is_tls_first=self._is_tls_first)
            except DeliveryError as error:
                causes.append(f"{_name(server)} can't be used: {error}")
            else:
                return link
        raise DeliveryError("; ".join(causes))

    async def _delivered(self, link: Link, messages: Sequence[Message]) -> Outcome:
        refused: list[Refusal] = []
        again: list[Message] = []
        reason = ""
        for start in range(0, len(messages), _WINDOW):
            window = messages[start : start + _WINDOW]
            for message, fault in zip(window, await self._faults(link, window), strict=True):
                if fault is None:
                    continue
                if fault.is_final:
                    refused.append(Refusal(message, fault.reason))
                else:
                    again.append(message)
                    reason = reason or fault.reason
        return Outcome(refused=tuple(refused), again=tuple(again), reason=reason)

    async def _faults(self, link: Link, messages: Sequence[Message]) -> list[_Fault | None]:
        """Publish messages; what there is against each. Raises DeliveryError."""
        try:
            answers = [await self._published(link, message) for message in messages]
            await link.answered([answer for answer in answers if answer is not None])
        except (OSError, errors.Error) as error:
            why = cause(error, link.hidden)
            # Not `from error`: a server may have put our secret into it.
            raise DeliveryError(f"{_name(link.server)} can't be used: {why}") from None
        oversized = _Fault(
            f"with its headers it has more than the {link.max_payload} bytes that "
            f"{_name(link.server)} takes: raise max_payload there",
            is_final=True,
        )
        return [
            oversized if answer is None else self._fault(answer.result(), link)
            for answer in answers
        ]

    async def _published(self, link: Link, message: Message) -> asyncio.Future[Msg] | None:
        """The answer to come to a message, None of one that the server would hang up on."""
        headers = {_MESSAGE_ID: message.uid}
        if self._stream is not None:
            headers[_EXPECTED_STREAM] = self._stream
        if link.size(headers, message.line) > link.max_payload:
            return None
        subject = self._subject
        if self._has_class:
            subject = f"{subject}.{_class_token(message.event())}"
        return await link.publish(subject, headers, message.line)

    def _fault(self, answer: Msg, link: Link) -> _Fault | None:
        """What an answer says against a message; raises DeliveryError where no stream gave it."""
        if answer.headers and answer.headers.get(_STATUS) == _NO_RESPONDERS:
            subjects = f"{self._subject}.*" if self._has_class else self._subject
            raise DeliveryError(
                f"no stream takes subject {subjects}: unless its servers are choosing a leader "
                f"now, create one: `nats stream add ocsf --subjects '{subjects}' --defaults`"
            )
        said = _said(answer.data)
        error = said.get("error")
        if isinstance(error, dict):
            why = printable(error.get("description", error), link.hidden)
            return _Fault(
                f"the stream of {self._subject} says: {why}",
                is_final=error.get("err_code") == _TOO_LARGE,
            )
        if not isinstance(said.get("stream"), str) or not isinstance(said.get("seq"), int):
            raise DeliveryError(
                f"what answers on subject {self._subject} is no stream: let nobody else reply there"
            )
        return None


def _said(data: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _class_token(event: Any) -> str:
    """An event's class as a token of a subject: one or more of a to z, 0 to 9 and _."""
    name = event.get("class_name") if isinstance(event, dict) else None
    return _UNNAMED.sub("_", str(name).lower()) or "none"


def _name(server: str) -> str:
    """A server for a person: the host and port that its URL has."""
    return f"NATS server {urlsplit(server).netloc}"
