"""Destinations of events, with their delivery settings, from the configuration.

This module is also loaded by the delivery process, which must stay small: no models of events here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.base import BatchSettings, Message, Sink
from ocsf_nft.errors import DeliveryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocsf_nft.config.sinks import SinkTable
    from ocsf_nft.state.change import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Destination of events (``sink``), with its name and its delivery settings.

    The settings are the OCSF version and classes of the delivered events, and the batch settings.
    """

    name: str
    sink: Sink
    #: OCSF version of the events that the sink gets; None for the version of the stored events.
    other_version: str | None = None
    #: The sink gets the lean form of events.
    is_lean: bool = False
    #: The sink gets only events with these values of ``class_uid``; None for all events.
    classes: frozenset[int] | None = None
    batch_settings: BatchSettings = field(default_factory=BatchSettings)
    #: True for a file or standard output. If it can't be opened, the service does not start.
    is_local: bool = False
    #: Whether the sink first gets a JSON line, the handshake. It is sent when all fences are active
    #: and all log sources are open.
    needs_handshake: bool = False
    #: File that the sink writes, if any. Only this service may write to it.
    file: Path | None = None
    #: Files that the sink reads, and the file or directory that it writes.
    reads: frozenset[Path] = frozenset()
    writes: Path | None = None

    @classmethod
    def of(cls, table: SinkTable) -> Self:
        """Create the outlet for a ``[[sink]]`` table of the configuration.

        Raises UnsupportedError if the sink needs a package extra that is not installed.
        """
        return cls(
            name=table.called,
            sink=table.sink(),
            other_version=table.other_version,
            is_lean=table.detail == "lean",
            classes=None if table.has_all_classes else table.class_uids,
            batch_settings=table.batch_settings,
            is_local=table.file is not None,
            needs_handshake=getattr(table, "handshake", False),
            file=table.file,
            reads=table.reads,
            writes=table.writes,
        )

    def convert(self, line: bytes) -> bytes | None:
        """Convert an event (a JSON line) to the sink's OCSF version and detail, and return it.

        Return None if the sink gets no events of this class.
        """
        if self.classes is not None:
            class_uid = LineFields(line).integer("class_uid")
            if class_uid is not None and class_uid not in self.classes:
                return None
        if self.other_version is not None:
            line = _conversions().line_at(line, self.other_version)
        if self.is_lean:
            line = _conversions().lean_line(line)
        return line

    async def deliver(self, change: Change) -> None:
        """Send events (JSON lines) directly to the open sink, without storing them first.

        Events that the sink does not accept are dropped, and DeliveryError is raised. Use this only
        for events that come from log files, because these files can be read again.
        """
        converted = map(self.convert, change.events)
        messages = [Message("", line) for line in converted if line is not None]
        if not messages:
            return
        outcome = await self.sink.deliver(messages)
        if outcome.refused or outcome.again:
            reason = outcome.reason or outcome.refused[0].reason
            raise DeliveryError(f"{self.name} did not accept all events: {reason}")


class _Conversions(NamedTuple):
    line_at: Callable[[bytes, str], bytes]
    lean_line: Callable[[bytes], bytes]


@cache
def _conversions() -> _Conversions:
    # Loaded only where configured: they need the models.
    from ocsf_nft.ocsf.lean import lean_line  # noqa: PLC0415
    from ocsf_nft.ocsf.versions import line_at  # noqa: PLC0415

    return _Conversions(line_at, lean_line)


def outlets(tables: Sequence[SinkTable]) -> tuple[Outlet, ...]:
    """Create an outlet (a sink with its settings) for each ``[[sink]]`` table of a configuration.

    Raises UsageError if two sinks write to one file. Raises UnsupportedError if a sink needs a
    package extra that is not installed.
    """
    # The lines of two sinks would mix.
    named: dict[object, str] = {}
    for table in tables:
        identity = file_identity(table.file)
        if identity is not None and identity in named:
            raise UsageError(
                f"the sinks {named[identity]} and {table.called} are one file: give each its own"
            )
        named[identity] = table.called
    return tuple(map(Outlet.of, tables))


def file_identity(file: Path | None) -> object:
    """Return a value that is equal for all paths of a file, also for links.

    The file need not exist. Return None if ``file`` is None.
    """
    if file is None:
        return None
    try:
        found = file.stat()
    except (OSError, ValueError):  # the file does not exist yet
        return os.path.realpath(file)
    return found.st_dev, found.st_ino
