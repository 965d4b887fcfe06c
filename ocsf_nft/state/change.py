"""Changes of the service's state, for one transaction of the state database."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.state.dropped_events import DroppedEvents


class PartKey(NamedTuple):
    """Key of a stored part of an account: of the firewall rule ``rule``, ``data`` among its kind.

    Only :mod:`ocsf_nft.flows.codec` knows the kinds and the values of parts.
    """

    rule: str
    kind: str
    data: bytes


@dataclass(slots=True)
class AccountChange:
    """Changed parts of one sandbox's account since its last commit."""

    sandbox: str
    #: Rules with counters that were created again: their stored parts are deleted first.
    renewed_rules: list[str] = field(default_factory=list)
    #: New values of parts; None deletes a part.
    parts: dict[PartKey, bytes | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return True if there is anything to store."""
        return bool(self.renewed_rules or self.parts)


class Position(NamedTuple):
    """Position up to which a source of log records was read.

    ``sandbox`` is the sandbox of the records; None for records of other firewalls. It has only one
    position: that of the source that was read last.
    """

    sandbox: str | None
    source: str
    position: str


class Account(NamedTuple):
    """Stored account of one sandbox, with its numbers of dropped log records."""

    parts: Mapping[PartKey, bytes] = MappingProxyType({})
    position: Position | None = None
    dropped: Sequence[DroppedRecords] = ()


class DroppedRecords(NamedTuple):
    """Numbers of gaps in one source of a sandbox's log records, and of missing log records.

    ``records`` is a lower bound, because some sources can't count their missing log records.
    """

    source: str
    gaps: int
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Change of the state that is stored completely or not at all.

    ``events`` are JSON lines. ``account`` has the counts that these events report. ``dropped`` maps
    sandboxes to new gaps in their log records. ``reported`` has the numbers of this database's
    dropped events that ``events`` report. ``findings`` has the new values of open findings
    about the protection of sandboxes, by their uids; None ends one.
    """

    events: Sequence[bytes] = ()
    account: AccountChange | None = None
    position: Position | None = None
    dropped: Sequence[tuple[str, DroppedRecords]] = ()
    reported: Sequence[DroppedEvents] = ()
    findings: Mapping[str, bytes | None] = field(default_factory=lambda: MappingProxyType({}))
