"""The kinds of sinks in the trials, with their receivers and the trials that they skip."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.delivery.trials.daemons import Syslog
from tests.delivery.trials.disks import Directory, File
from tests.delivery.trials.lake import Bucket
from tests.delivery.trials.over_http import AnyHttp, OpenSearch, OpenTelemetry, Splunk
from tests.delivery.trials.programs import Program
from tests.delivery.trials.queues import Kafka, Nats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.delivery.trials.receivers import Receiver, Setting

# The trials that some kinds skip.
SLOW: Final = "slow"
STRICT: Final = "strict"
CERTIFICATE: Final = "certificate"
SECRET: Final = "secret"  # noqa: S105 - a trial's name

_NO_NETWORK: Final = {
    CERTIFICATE: "it uses no network",
    SECRET: "only the system's permissions restrict access",
}
_TAKES_ALL: Final = {STRICT: "it accepts any bytes"}
_IN_THE_CLEAR: Final = {CERTIFICATE: "it has no TLS"}
_NO_SECRET: Final = {SECRET: "the only secret of syslog is a certificate's key"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sink with its receiver, and the guarantees of its delivery.

    If it ``deduplicates``, a repeated delivery does not store an event twice. ``may_drop`` and
    ``may_reorder`` are the reasons for dropped or reordered events. ``always_refuses`` is the
    reason why a refused event is refused for ever. ``skipped`` has the trials that it can't do, and
    why. ``sends`` is how often a library sends an unanswered batch within one delivery attempt.
    """

    make: Callable[[Setting], Receiver]
    deduplicates: bool = False
    may_drop: str = ""
    may_reorder: str = ""
    always_refuses: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    sends: int = 1


_UNACKNOWLEDGED: Final = "the kernel acknowledges data that the daemon has not read"
_NEW_CLASS: Final = "only this program knows the columns of a class"

#: Without standard output: its reader started the run, and the run ends when the reader exits.
KINDS: Final[Mapping[str, Kind]] = {
    # An event that a full disk truncated is removed.
    "file": Kind(make=File, deduplicates=True, skipped=_NO_NETWORK | _TAKES_ALL),
    "unix": Kind(make=Program, skipped=_NO_NETWORK | _TAKES_ALL),
    "http": Kind(make=AnyHttp),
    "splunk_hec": Kind(make=Splunk),
    "splunk_hec_with_ack": Kind(make=partial(Splunk, with_ack=True)),
    "opensearch": Kind(make=OpenSearch, deduplicates=True),
    "otlp": Kind(make=OpenTelemetry),
    "syslog_udp": Kind(
        make=partial(Syslog, transport="udp"),
        may_drop="a datagram without a receiver is reported with the next one, if at all",
        may_reorder="a receiver started during a batch gets its end first, then all of it",
        skipped={SLOW: "nothing answers, so the sink does not wait"} | _IN_THE_CLEAR | _NO_SECRET,
    ),
    "syslog_tcp": Kind(
        make=partial(Syslog, transport="tcp"),
        may_drop=_UNACKNOWLEDGED,
        skipped=_IN_THE_CLEAR | _NO_SECRET,
    ),
    "syslog_tls": Kind(
        make=partial(Syslog, transport="tls"), may_drop=_UNACKNOWLEDGED, skipped=_NO_SECRET
    ),
    "nats": Kind(make=Nats, deduplicates=True),
    # A real broker detects a repeated batch by its number; the trial's broker does not.
    "kafka": Kind(make=Kafka, sends=3),
    "parquet_directory": Kind(
        make=Directory, deduplicates=True, always_refuses=_NEW_CLASS, skipped=_NO_NETWORK
    ),
    "parquet_bucket": Kind(make=Bucket, deduplicates=True, always_refuses=_NEW_CLASS),
}


def kinds_in_trial(trial: str) -> list[str]:
    """Return the kinds that do not skip a trial."""
    return [name for name, kind in KINDS.items() if trial not in kind.skipped]
