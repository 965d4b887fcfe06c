"""SIGHUP during a run and during its stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.cli import options
from ocsf_nft.cli.reload import Reload, reload_on_hangup
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Iterator


class Failing:
    """Service with a slow reload that must not be interrupted, and that fails."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def reload(self, _: object) -> None:
        self.begun.set()
        await run_shielded(self._fail())

    async def _fail(self) -> None:
        await asyncio.sleep(0.1)
        raise DeliveryError("a sink can't be opened")


def _service(made: Any) -> Any:
    return made


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


async def test_hangup_never_has_its_default_action_which_ends_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions: list[object] = []
    set_action = signal.signal

    def set_and_note(number: int, action: Any) -> Any:
        if number == signal.SIGHUP:
            actions.append(action)
        return set_action(number, action)

    set_action(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", set_and_note)
    reloading = asyncio.create_task(reload_on_hangup(Reload(_service(Failing()), Path("x"))))
    await asyncio.sleep(0)
    assert callable(signal.getsignal(signal.SIGHUP))
    reloading.cancel()
    await asyncio.wait([reloading])
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.SIG_DFL not in actions


async def test_failing_reload_during_a_stop_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "configuration", lambda _: None)
    failing = Failing()
    reloading = asyncio.create_task(reload_on_hangup(Reload(_service(failing), Path("x"))))
    await asyncio.sleep(0)
    for _ in range(2):
        failing.begun.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        await failing.begun.wait()
        await asyncio.sleep(0.2)
        assert not reloading.done(), "all goes on as before"
    failing.begun.clear()
    os.kill(os.getpid(), signal.SIGHUP)
    await failing.begun.wait()
    reloading.cancel()
    await asyncio.wait_for(asyncio.wait([reloading]), 5)
