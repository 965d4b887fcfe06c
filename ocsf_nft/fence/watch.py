"""Notice when a fence's surroundings may have changed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import rtnetlink
from ocsf_nft.errors import SourceError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.netns import Namespace

#: Links come in bursts (a veth pair, its address, its state): one look at the end of each, and no
#: more than some looks a second for whoever makes interfaces in a loop.
_SETTLE_SECONDS: Final = 0.05
_REST_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 5.0
_RECEIVE_BYTES: Final = 1 << 16


class Watch:
    """Notifications of rtnetlink about links and routes, from inside a namespace.

    Needs no privilege there. A fence itself can be altered without any of these, so it is worth a
    look every few seconds as well.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        """Listen; raises SourceError, and what :meth:`Namespace.call` does."""
        self._socket = self._namespace.call(lambda: rtnetlink.subscribe(routes=True))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()

    async def changes(self) -> AsyncIterator[None]:
        """Once for each burst of changes, and every five seconds.

        What happens while the consumer is busy is not lost. Raises SourceError.
        """
        if self._socket is None:
            raise RuntimeError("enter the watch first")
        loop = asyncio.get_running_loop()
        while True:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await loop.sock_recv(self._socket, _RECEIVE_BYTES)
                    await asyncio.sleep(_SETTLE_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # missed some: there were changes
                    raise SourceError(
                        f"the interfaces of {self._namespace} can't be watched: {error.strerror}"
                    ) from error
            yield
            await asyncio.sleep(_REST_SECONDS)
