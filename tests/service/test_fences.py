from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import FenceError
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service import fences

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_look_that_has_begun_ends_before_its_watch_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def stand(_sandbox: SandboxConfig, _state: StateDirectory) -> NoReturn:
        begun.set()
        may_end.wait(10)
        ended.set()
        raise FenceError("it can't stand")

    monkeypatch.setattr(fences, "stand", stand)
    sandbox = SandboxConfig(name="lab")
    look = asyncio.ensure_future(fences._look(sandbox, StateDirectory(tmp_path)))
    await asyncio.to_thread(begun.wait, 10)
    look.cancel()
    await asyncio.sleep(0.05)
    assert not look.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await look
    assert ended.is_set()
