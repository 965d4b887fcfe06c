"""Demo: makes a temporary sandbox with a fence, tries to bypass the fence, and shows the events.

At the end, everything is removed, also after an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import config, lab
from ocsf_nft.demo.attempts import all_attempts
from ocsf_nft.demo.proxy import stub_proxy
from ocsf_nft.demo.screen import Row, Screen
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service.run import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
    from typing import Any, ClassVar

_SANDBOX: Final = "demo"
#: An event that takes longer than this counts as not reported.
_REPORT_SECONDS: Final = 2.0
#: Pause between two attempts, so that people can follow.
_PACE_SECONDS: Final = 0.2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(OcsfNftError):
    """Error: an attempt to reach a host had an unexpected result, or its event is missing."""

    exit_code: ClassVar[int] = 1


class Collector:
    """Events of a service, in memory."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrival = asyncio.Condition()
        self._is_over = False

    async def collect(self, events: AsyncIterable[dict[str, Any]]) -> None:
        """Store all ``events``, and wake the callers of :meth:`find`."""
        try:
            async for event in events:
                self.events.append(event)
                async with self._arrival:
                    self._arrival.notify_all()
        finally:
            self._is_over = True
            async with self._arrival:
                self._arrival.notify_all()

    async def find(
        self, is_selected: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any] | None:
        """Return the first event for which ``is_selected`` returns true; wait until it arrives.

        Returns None if no such event arrives within ``seconds``, or before the events end.
        """

        def found() -> dict[str, Any] | None:
            return next(filter(is_selected, self.events), None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrival:
                await self._arrival.wait_for(lambda: self._is_over or found() is not None)
        return found()


def demonstrate() -> None:
    """Run the demo for some seconds: try to bypass a fence, and show the reported events.

    Call it from the main thread, as root. Raises DemoError, UnsupportedError and errors of
    :class:`Service`. Raises SystemExit on SIGINT, SIGTERM or SIGHUP.
    """
    if os.geteuid() != 0:
        raise UnsupportedError(
            "the demo makes network namespaces, which needs root: run it with sudo"
        )
    collector, screen = Collector(), Screen()
    with (
        _blocked_signals(),
        lab.throwaway() as made,
        tempfile.TemporaryDirectory(prefix="ocsf-nft-demo-") as directory,
    ):
        state = StateDirectory(Path(directory))
        try:
            ended_by = asyncio.run(_until_signal(_demonstrate(made, state, collector, screen)))
        finally:
            _remove_fences(state)
    if ended_by is not None:
        screen.give_up()
        raise SystemExit(128 + ended_by)
    screen.conclude(collector.events)
    faults = [f"{row.attempt.title} {row.fault}" for row in screen.rows if row.fault]
    if faults:
        others = f", and {len(faults) - 1} more failed" if faults[1:] else ""
        raise DemoError(f"{faults[0]}{others}: `ocsf-nft check` shows what this host lacks")


async def _demonstrate(
    made: lab.Lab, state: StateDirectory, collector: Collector, screen: Screen
) -> None:
    async with stub_proxy(made.gateway_namespace), _watched(made, state, collector):
        with screen:
            for attempt in all_attempts(made.sandbox_device):
                outcome = await attempt.make(made.sandbox_namespace)
                event = None
                if attempt.trace is not None:
                    event = await collector.find(attempt.trace.is_in, _REPORT_SECONDS)
                screen.add(Row(attempt=attempt, outcome=outcome, event=event))
                if screen.is_watched:
                    await asyncio.sleep(_PACE_SECONDS)


@contextlib.asynccontextmanager
async def _watched(
    made: lab.Lab, state: StateDirectory, collector: Collector
) -> AsyncIterator[None]:
    """Install a fence around the demo's sandbox; run the service during the ``async with`` body."""
    sandbox = {
        "name": _SANDBOX,
        "netns": made.sandbox,
        "proxy": [f"{lab.GATEWAY4}:{lab.PROXY_PORT}", f"[{lab.GATEWAY6}]:{lab.PROXY_PORT}"],
        "install": True,
    }
    requested = config.parse({"sandbox": [sandbox], "state_dir": state.path}, where="the demo")
    async with Service(requested, iterates=True) as service:
        installed = state.read(_SANDBOX)
        if installed is not None and installed.degraded is not None:
            raise UnsupportedError(
                "the fence is active, but this kernel can't log refused packets: "
                f"{installed.degraded}"
            )
        collecting = asyncio.create_task(collector.collect(service))
        try:
            yield
            service.stop()
            await collecting  # ends after the last event
        finally:
            collecting.cancel()
            await asyncio.wait({collecting})


async def _until_signal(work: Coroutine[Any, Any, None]) -> int | None:
    """Run ``work`` until it ends, or until a signal cancels it; return the signal's number.

    The caller has blocked the signals. They are unblocked while ``work`` runs.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    received: list[int] = []

    def end(number: int) -> None:
        if not received:  # a second one must not interrupt the cleanup
            task.cancel()
        received.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, end, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        await task
    except (asyncio.CancelledError, OcsfNftError):
        # Ctrl-C of a terminal also reaches other programs in the foreground: nft, curl.
        if not received:
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    return received[0] if received else None


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    # Also in new child processes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove_fences(state: StateDirectory) -> None:
    # Normally there is none: the service removes its fence.
    for sandbox in list(state.sandboxes()):
        installer.remove(sandbox, state)
