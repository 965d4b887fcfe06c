"""Client of the control API of a running service, for asyncio."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import orjson

from ocsf_nft.control import answers
from ocsf_nft.control.http_call import sandbox_target
from ocsf_nft.control_request import SOCKET
from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    import aiohttp


class Client:
    """Client of a running service; use it in ``async with``.

    All methods raise the error that the service reports: UsageError for a wrong value,
    ConflictError (a UsageError) if the present state forbids the call, ChangedError (a
    ConflictError) if another call was first, AbsentError for an unknown
    sandbox or namespace, FenceError, UnsupportedError, SourceError or DeliveryError if the service
    fails. They also raise AbsentError if no service listens at the socket, UnsupportedError if
    connecting is not permitted, DeliveryError if the answer does not arrive within a minute.
    """

    def __init__(self, path: str | os.PathLike[str] = SOCKET) -> None:
        """Create a client of the service with the socket ``path``."""
        self._path = Path(path)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Prepare the connections; raises UnsupportedError if the extra ``http`` is missing."""
        try:
            import aiohttp  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UnsupportedError(
                "ocsf_nft.Client needs the extra ocsf-nft[http]: install it"
            ) from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(self._path)),
            timeout=aiohttp.ClientTimeout(total=answers.ANSWER_SECONDS),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def put(self, name: str, *, if_match: str | None = None, **keys: Any) -> dict[str, Any]:
        """Add the sandbox ``name``, or change its policy; return when its fence is active.

        ``keys`` are those of a ``[[sandbox]]`` table, such as ``netns="agent"`` and
        ``proxy=["10.0.0.1:3128"]``. They replace the whole policy. ``install`` is true by default.
        Objects such as paths and addresses are sent as text.
        The result has ``changes`` (differences to the policy before) and ``sandbox``.

        With ``if_match``, the ``etag`` of an earlier answer, only that version is changed: raises
        ChangedError if another caller has changed the policy since then.
        """
        if if_match is not None and not if_match.isprintable():
            raise UsageError(
                f"if_match {quoted(if_match)} is no entity tag: give the etag of an earlier answer"
            )
        headers = {} if if_match is None else {"If-Match": if_match}
        return await self._call("PUT", sandbox_target(name), keys, headers)

    async def release(self, name: str) -> dict[str, Any]:
        """Release a sandbox: remove its fence; return its final packet counts."""
        return await self._call("DELETE", sandbox_target(name))

    async def sandbox(self, name: str) -> dict[str, Any]:
        """Return the state, the policy and the packet counts of a sandbox."""
        return await self._call("GET", sandbox_target(name))

    async def sandboxes(self) -> list[dict[str, Any]]:
        """Return the states and policies of all sandboxes, sorted by name."""
        found: list[dict[str, Any]] = (await self._call("GET", "/v1/sandboxes"))["sandboxes"]
        return found

    async def status(self) -> dict[str, Any]:
        """Return the version, the faults and the sinks of the service."""
        return await self._call("GET", "/v1/status")

    async def reload(self) -> None:
        """Let the service read its configuration file again, as SIGHUP does."""
        await self._call("POST", "/v1/reload")

    async def events(  # noqa: PLR0913 - each may be left out
        self,
        *,
        sandbox: str | None = None,
        severity: str | None = None,
        since: str | dt.datetime | None = None,
        last: int | None = None,
        after: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield stored events as decoded JSON, in the order in which they were stored.

        ``severity`` is the lowest one, such as ``high``. ``since`` is a time, or an age such as
        ``12h``; a datetime without a zone is local time. ``last`` is the maximum number of
        stored events, the last ones. ``after`` is the ``metadata.uid`` of an event: only later ones
        are yielded. With ``follow``, new events follow until
        the caller leaves the loop or the service stops. Raises DeliveryError if events are missing
        at the end.
        """
        time = since.astimezone().isoformat() if isinstance(since, dt.datetime) else since
        given = {
            "sandbox": sandbox, "severity": severity, "since": time, "last": last, "after": after,
        }  # fmt: skip
        query = {name: str(value) for name, value in given.items() if value is not None}
        if follow:
            query["follow"] = "1"
        async with contextlib.aclosing(self._lines("/v1/events", query)) as lines:
            async for line in lines:
                yield self._decoded(line)

    async def _call(
        self,
        method: str,
        target: str,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        try:
            data = None if body is None else orjson.dumps(body, default=str)
        except TypeError as error:  # text with surrogates, an integer of more than 64 bits
            raise UsageError(f"a value can't be sent as JSON: {error}") from error
        async with self._response(method, target, data=data, headers=headers) as response:
            return self._decoded(await response.read())

    def _decoded(self, content: bytes) -> dict[str, Any]:
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise answers.interrupted(self._path, str(error)) from error
        if not isinstance(found, dict):
            raise answers.interrupted(self._path, "no JSON object")
        return found

    async def _lines(self, target: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        import aiohttp  # noqa: PLC0415 - an extra

        endless = aiohttp.ClientTimeout(total=None)
        async with self._response("GET", target, params=query, timeout=endless) as response:
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield line

    @contextlib.asynccontextmanager
    async def _response(
        self, method: str, target: str, **options: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Yield the answer to a request; raise its error if it is one."""
        import aiohttp  # noqa: PLC0415 - an extra
        import yarl  # noqa: PLC0415 - belongs to aiohttp

        if self._session is None:
            raise UsageError("the client is not open: use it in `async with`")
        url = yarl.URL(f"http://localhost{target}", encoded=True)
        try:
            async with self._session.request(method, url, **options) as response:
                if response.status >= 400:
                    raise answers.failure(response.status, await response.read())
                yield response
        except aiohttp.ClientConnectorError as error:
            raise answers.unreachable(self._path, error.os_error) from error
        except TimeoutError as error:
            raise answers.late(self._path, answers.ANSWER_SECONDS) from error
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise answers.interrupted(self._path, reason) from error
