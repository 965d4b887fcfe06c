"""Opening of the sources from which a service reads log records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.netns import HOST
from ocsf_nft.service import fences
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence

    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.service.account_loop import AccountLoop
    from ocsf_nft.service.fences import Fence
    from ocsf_nft.sources.base import Source
    from ocsf_nft.state.state_store import StateStore

LogName: TypeAlias = Literal["kmsg", "journal"]
#: Sources of the kernel's log, by the key of their stored position.
_LOGS: Final[dict[LogName, type[Kmsg | Journal]]] = {"kmsg": Kmsg, "journal": Journal}


@dataclass(frozen=True, slots=True)
class Feed:
    """Opened source of log records, and the sandboxes that its records may be about."""

    source: Source
    #: Names of the sandboxes. None among them allows records of other firewalls.
    sandboxes: frozenset[str | None]
    #: Key of the source's read position in the store; empty if the store never has such a position.
    name: str = ""


class EarlySources:
    """NFLOG sources that are opened before their fence is active, so that no log record is missed.

    If a source can't be opened, :meth:`take` raises the error later.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[str, int], Nflog | OcsfNftError] = {}

    async def open(
        self, sandbox: SandboxConfig, state: StateDirectory, stack: contextlib.AsyncExitStack
    ) -> None:
        """Open the NFLOG sources of a sandbox's fence, if its configuration allows NFLOG.

        ``stack`` closes the sources later.
        """
        if fences.requested_transport(sandbox) not in {None, "nflog"}:
            return
        on_record = None if sandbox.install else state.read(sandbox.name)
        namespace = sandbox.namespace or (on_record.namespace if on_record else HOST)
        group = on_record.spec.group if on_record else sandbox.group
        await self._open(namespace, group, stack)
        if sandbox.host_guard is not None:
            await self._open(HOST, group, stack)

    async def take(
        self, namespace: Namespace, group: int, stack: contextlib.AsyncExitStack
    ) -> Nflog:
        """Return the open NFLOG source of a namespace and group; open it first if necessary.

        ``stack`` closes the source later. Raises an OcsfNftError if opening fails, or has failed
        before.
        """
        await self._open(namespace, group, stack)
        source = self._opened[namespace.identity(), group]
        if isinstance(source, OcsfNftError):
            raise source
        return source

    async def _open(
        self, namespace: Namespace, group: int, stack: contextlib.AsyncExitStack
    ) -> None:
        key = (namespace.identity(), group)
        if key in self._opened:
            return
        try:
            self._opened[key] = await stack.enter_async_context(Nflog(namespace, group))
        except OcsfNftError as error:
            self._opened[key] = error


def log_name(sandbox: SandboxConfig) -> LogName:
    """Return the name of the source that reads the kernel's log for a sandbox: kmsg or journal."""
    return "journal" if sandbox.source == "journal" else "kmsg"


async def feeds(  # noqa: PLR0913, PLR0917 - the parts of a service
    config: Config,
    active_fences: Sequence[Fence],
    accounts: Mapping[str, AccountLoop],
    store: StateStore,
    early: EarlySources,
    stack: contextlib.AsyncExitStack,  # closes the sources later
) -> list[Feed]:
    """Open the configured log sources, and return a feed (a source with its sandboxes) for each.

    Reading resumes at the positions stored in ``accounts`` and ``store``, if any. ``active_fences``
    has the order of ``config.sandbox``. Raises an OcsfNftError if opening fails.
    """
    found: list[Feed] = []
    by_nflog: dict[Nflog, set[str | None]] = {}
    for sandbox, fence in zip(config.sandbox, active_fences, strict=True):
        installed = fence.installed
        if installed.transport == "nflog":
            namespaces = [installed.namespace]
            if installed.spec.guard_device is not None:
                namespaces.append(HOST)
            for namespace in namespaces:
                nflog = await early.take(namespace, installed.spec.group, stack)
                by_nflog.setdefault(nflog, set()).add(sandbox.name)
        elif installed.transport == "kmsg":
            # One reader for each sandbox, because each account has a position of its own.
            names = frozenset({sandbox.name})
            reader = _LOGS[log_name(sandbox)](names, accounts[sandbox.name].position)
            found.append(Feed(await stack.enter_async_context(reader), names))
    if config.host_log is not None:
        position = store.database.host_position(config.host_log)
        reader = _LOGS[config.host_log](frozenset(), position, foreign=config.prefixes)
        found.append(
            Feed(await stack.enter_async_context(reader), frozenset({None}), config.host_log)
        )
    return found + [Feed(source, frozenset(names)) for source, names in by_nflog.items()]
