"""Host names in the policy of one watched sandbox, and the replacement of their addresses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.delivery.backoff import Backoff
from ocsf_nft.delivery.name_resolver import require_library
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.host_names import Addresses, ResolvedName
    from ocsf_nft.service.shared_names import SharedName, SharedNames

_log = structlog.get_logger()

#: Time for which a call waits for the first answers about its names.
SETTLE_SECONDS: Final = 5.0
#: Time for which the first answer waits for those about the other names.
_GATHER_SECONDS: Final = 0.5
#: Longest pause between two attempts to replace the addresses.
_MAX_PAUSE_SECONDS: Final = 60.0


class SandboxNames:
    """Host names that the policy of a sandbox has, and their addresses."""

    def __init__(self, sandbox: str, shared: SharedNames, known: Iterable[ResolvedName]) -> None:
        """Create the names of a sandbox; it has none before :meth:`follow`.

        ``known`` are the addresses in the record of its fence, which count until there is an
        answer.
        """
        self._sandbox = sandbox
        self._shared = shared
        self._known = {each.name: each.addresses for each in known}
        self._names: dict[str, SharedName] = {}
        #: Numbers of changes that may have given the names other addresses, and of those that the
        #: fence has.
        self._noted = self._applied = 0
        self._has_news = asyncio.Event()
        self._progress = asyncio.Condition()
        #: Reason why the addresses in the fence can't be replaced; None if they can.
        self.failure: str | None = None

    def follow(self, *configs: SandboxConfig) -> None:
        """Follow the names of ``configs`` from now on, and no others.

        Raises UnsupportedError if the library to resolve names is missing.
        """
        before, names = set(self._names), {name for each in configs for name in each.names}
        if names:
            require_library()
        for name in names - self._names.keys():
            self._names[name] = self._shared.follow(name, self._note_change)
        for name in self._names.keys() - names:
            self._shared.leave(name, self._note_change)
            del self._names[name]
        if names != before:
            self._note_change()

    def close(self) -> None:
        """Follow no name any more."""
        self.follow()

    def addresses(self) -> Addresses:
        """Return the present addresses of all names."""
        return {
            name: each.state.addresses(self._known.get(name, ()))
            for name, each in self._names.items()
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield each name that is not fully resolved, and the reason."""
        for name, each in sorted(self._names.items()):
            if (fault := each.state.fault(self._known.get(name, ()))) is not None:
                yield name, fault

    async def run(self, replace: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call ``replace`` whenever addresses may have changed, until cancelled.

        After an OcsfNftError of ``replace``, it is called again later.
        """
        backoff = Backoff(max_seconds=_MAX_PAUSE_SECONDS)
        while True:
            await self._has_news.wait()
            await self._wait_until_answered()
            self._has_news.clear()
            noted = self._noted
            failure = await run_shielded(_error_of(replace()))
            if failure is not None:
                if self.failure != failure:
                    _log.error(
                        "addresses of host names can't be replaced",
                        sandbox=self._sandbox,
                        reason=failure,
                    )
                self.failure = failure
                self._has_news.set()
                await asyncio.sleep(backoff.wait_seconds(None))
                continue
            backoff = Backoff(max_seconds=_MAX_PAUSE_SECONDS)
            self.failure, self._applied = None, noted
            async with self._progress:
                self._progress.notify_all()

    async def _wait_until_answered(self) -> None:
        """Wait briefly for the other first answers, so that one replacement has them all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_SECONDS):
                while not self._is_answered:
                    self._has_news.clear()
                    await self._has_news.wait()

    async def settle(self) -> None:
        """Wait until the fence has the first answers about all names, for at most 5 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS), self._progress:
                await self._progress.wait_for(self._is_settled)

    def _is_settled(self) -> bool:
        return self._is_answered and self._applied == self._noted

    @property
    def _is_answered(self) -> bool:
        return all(each.state.is_answered for each in self._names.values())

    def _note_change(self) -> None:
        self._noted += 1
        self._has_news.set()


async def _error_of(work: Coroutine[Any, Any, None]) -> str | None:
    """Await ``work``, and return its error, which would hide a cancellation if it were raised."""
    try:
        await work
    except OcsfNftError as error:
        return str(error)
    return None
