from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import rtnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence.watch import Watch
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel


class Failing:
    """A socket that gives no datagram but an error."""

    def __init__(self, code: int) -> None:
        self._code = code

    def recv(self, _bytes: int) -> bytes:
        raise OSError(self._code, os.strerror(self._code))

    def gettimeout(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Watch]:
    def watch(code: int) -> Watch:
        monkeypatch.setattr(rtnetlink, "subscribe", lambda **_: Failing(code))
        return Watch(Namespace())

    return watch


async def test_a_watch_that_fails_says_so_in_a_sentence(failing: Callable[[int], Watch]) -> None:
    async with failing(errno.EIO) as watch:
        with pytest.raises(SourceError, match="can't be watched: Input/output error"):
            await anext(watch.changes())


async def test_notices_that_were_lost_are_a_change(failing: Callable[[int], Watch]) -> None:
    async with failing(errno.ENOBUFS) as watch:
        await anext(watch.changes())
