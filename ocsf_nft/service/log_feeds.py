"""Feeds from the kernel's log: kmsg or the journal, each for one sandbox or for other firewalls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg

if TYPE_CHECKING:
    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.sources.base import Source
    from ocsf_nft.state.state_store import StateStore

LogName: TypeAlias = Literal["kmsg", "journal"]
#: Sources of the kernel's log, by the key of their stored position.
_LOGS: Final[dict[LogName, type[Kmsg | Journal]]] = {"kmsg": Kmsg, "journal": Journal}


@dataclass(frozen=True, slots=True)
class LogFeed:
    """Source of log records, and the sandboxes that its records may be about."""

    source: Source
    #: Names of the sandboxes. None among them allows records of other firewalls.
    sandboxes: frozenset[str | None]
    #: Key of the source's read position in the store; empty if the account has the position.
    name: str = ""


def log_name(sandbox: SandboxConfig) -> LogName:
    """Return the name of the source that reads the kernel's log for a sandbox: kmsg or journal."""
    return "journal" if sandbox.source == "journal" else "kmsg"


def of_sandbox(sandbox: SandboxConfig, position: str | None) -> LogFeed:
    """Return the feed of a sandbox, which is not open yet; reading resumes at ``position``."""
    # One reader for each sandbox, because each account has a position of its own.
    names = frozenset({sandbox.name})
    return LogFeed(_LOGS[log_name(sandbox)](names, position), names)


def of_host(config: Config, store: StateStore) -> LogFeed | None:
    """Return the feed of other firewalls' records, which is not open yet; None if unconfigured."""
    if config.host_log is None:
        return None
    position = store.database.host_position(config.host_log)
    reader = _LOGS[config.host_log](frozenset(), position, foreign=config.prefixes)
    return LogFeed(reader, frozenset({None}), config.host_log)
