"""Signals that end a run."""

from __future__ import annotations

import asyncio
import os
import signal
from importlib import import_module

import pytest

from ocsf_nft.service.pipeline import Counts

#: In the package, the name is the command.
_RUN = import_module("ocsf_nft.cli.run")


@pytest.mark.parametrize(
    ("signals", "ends_at_once"),
    [
        ([(signal.SIGTERM, 0.0)], False),
        # GNU timeout sends the signal to its child and to the process group.
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.0)], False),
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.99)], False),
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.5), (signal.SIGTERM, 1.0)], True),
        ([(signal.SIGTERM, 0.0), (signal.SIGINT, 1.0)], True),
        ([(signal.SIGINT, 0.0), (signal.SIGTERM, 5.0)], True),
        ([(signal.SIGTERM, 0.0), (signal.SIGHUP, 5.0), (signal.SIGHUP, 6.0)], False),
        ([(signal.SIGHUP, 0.0), (signal.SIGTERM, 5.0)], False),
    ],
)
def test_run_ends_at_once_for_a_second_signal_after_a_second(
    monkeypatch: pytest.MonkeyPatch, signals: list[tuple[signal.Signals, float]], ends_at_once: bool
) -> None:
    now = 0.0
    ended: list[float] = []
    monkeypatch.setattr(_RUN, "monotonic", lambda: now)
    monkeypatch.setattr(_RUN, "_end_at_once", lambda: ended.append(now))

    async def work(stop: asyncio.Event) -> Counts:
        nonlocal now
        for number, at in signals:
            now = at
            os.kill(os.getpid(), number)  # Python handles it before the next instruction
        await stop.wait()
        return Counts()

    asyncio.run(_RUN._until_signal(work))
    assert ended == ([signals[-1][1]] if ends_at_once else [])
