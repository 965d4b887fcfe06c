"""Requests to resolve host names, which the delivery process answers."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.service.delivery_answers import FamilyAnswer, NameAnswer
from ocsf_nft.service.delivery_link import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Time for an answer, a little less than a call waits for it. The process itself normally gives up
#: earlier; it may hang, or be started again.
_SECONDS: Final = 4.8


class _Request(NamedTuple):
    name: str
    answer: asyncio.Future[NameAnswer]


class NameRequests:
    """Requests that are not answered yet; a process that is started again gets all of them."""

    def __init__(self) -> None:
        self._numbers = count(1)
        #: Number of the latest request.
        self._last = 0
        self._waiting: dict[int, _Request] = {}
        self._send: Callable[[int, str], None] | None = None

    def use(self, send: Callable[[int, str], None] | None) -> None:
        """Use ``send`` for all requests that are not answered, and later ones; None for none.

        It sends the number of a request, and a name.
        """
        self._send = send
        if send is not None:
            for number, request in self._waiting.items():
                send(number, request.name)

    def take(self, answer: NameAnswer) -> None:
        """Take an answer of the process; raises LinkError if it was not asked."""
        if not 0 < answer.number <= self._last:
            raise LinkError("the delivery process sent addresses without a request")
        request = self._waiting.get(answer.number)
        if request is None:  # it came too late
            return
        if request.name != answer.name:
            raise LinkError("the delivery process sent addresses of another name")
        if not request.answer.done():
            request.answer.set_result(answer)

    async def resolve(self, name: str) -> NameAnswer:
        """Return the addresses of a host name, or errors if there is no answer in time."""
        number = self._last = next(self._numbers)
        answer: asyncio.Future[NameAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Request(name, answer)
        try:
            if self._send is not None:
                self._send(number, name)
            async with asyncio.timeout(_SECONDS):
                return await answer
        except TimeoutError:
            failure = FamilyAnswer(
                error=f"the delivery process has not answered within {_SECONDS} s"
            )
            return NameAnswer(number=number, name=name, families={4: failure, 6: failure})
        finally:
            del self._waiting[number]
