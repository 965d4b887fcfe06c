"""Start of the delivery process: its settings, and the check that both sides are one version."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.name_resolver import ResolverFiles
    from ocsf_nft.landlock import Rule
    from ocsf_nft.redaction import Redactor
    from ocsf_nft.service.outlet import Outlet

#: Time for the delivery of the last events when a run ends. The next run delivers the rest.
DRAIN_SECONDS: Final = 5.0
#: Signals for the service. systemd sends them to this process too.
SERVICE_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _code() -> str:
    status = Path(__file__).stat()
    return f"{status.st_ino}-{status.st_mtime_ns}"


#: Text that changes if another version of the program is installed. A service that runs meanwhile
#: has the old one.
CODE: Final = _code()
#: Sentence about such a service.
OUTDATED: Final = "another version of ocsf-nft was installed: restart the service"


def is_outdated() -> bool:
    """Return True if another version of the program was installed after the start of this one."""
    try:
        return _code() != CODE
    except OSError:  # the installation goes on
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Settings that the delivery process needs at its start."""

    outlets: Sequence[Outlet]
    #: Whether an earlier process of the same service has ended unexpectedly.
    is_again: bool
    #: Whether the start fails if a file or standard output can't be opened. Otherwise the process
    #: retries that, as for any other sink.
    opens_local: bool
    #: State database, a text that no other one has, and the number of its last event.
    events: Path
    identity: str
    end: int
    #: Database of the checkpoints, and the limits of its dead letters.
    sinks: Path
    max_bytes: int
    max_seconds: float
    #: First line of sinks that require it; None until the service is ready.
    handshake: bytes | None
    #: Time for the last events at the end.
    drain_seconds: float
    #: Lowest level of log records, of :mod:`logging`.
    log_level: int
    #: Files that configure the resolver of host names.
    resolver: ResolverFiles
    #: Redactor of the answers of receivers.
    redactor: Redactor
    #: Files that the process may open.
    files: frozenset[Rule]
