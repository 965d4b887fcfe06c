"""The kinds of sinks that are tried, what tries them, and which trials they go through."""

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

# The trials that some kinds do not go through.
SLOW: Final = "slow"
STRICT: Final = "strict"
CERTIFICATE: Final = "certificate"
SECRET: Final = "secret"  # noqa: S105 - a trial's name

_NO_NETWORK: Final = {
    CERTIFICATE: "nothing of it goes by a network",
    SECRET: "the system's permissions are all that it asks for",
}
_TAKES_ALL: Final = {STRICT: "it takes whatever bytes it is given"}
_IN_THE_CLEAR: Final = {CERTIFICATE: "it knows no TLS"}
_NO_SECRET: Final = {SECRET: "syslog knows no secret but a certificate's key"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sink: who receives, and what may be asked of it.

    Where it ``has_once``, what is delivered again is not there twice. ``may_lose`` and
    ``may_disorder`` say why it does, ``keeps_refusing`` why what it rejected it always will.
    ``without`` are the trials that it can't go through, and why. ``asks`` is how often a library
    sends what is not answered, within one try of ours.
    """

    make: Callable[[Setting], Receiver]
    has_once: bool = False
    may_lose: str = ""
    may_disorder: str = ""
    keeps_refusing: str = ""
    without: Mapping[str, str] = field(default_factory=dict)
    asks: int = 1


_UNACKNOWLEDGED: Final = "what the system has is acknowledged, though the daemon has not read it"
_NEW_CLASS: Final = "what a class has for columns, this program alone knows"

#: Standard output is none of them: who reads it began us, and when he is gone the run ends.
KINDS: Final[Mapping[str, Kind]] = {
    # What a full disk cut short is taken back.
    "file": Kind(make=File, has_once=True, without=_NO_NETWORK | _TAKES_ALL),
    "unix": Kind(make=Program, without=_NO_NETWORK | _TAKES_ALL),
    "http": Kind(make=AnyHttp),
    "splunk_hec": Kind(make=Splunk),
    "splunk_hec_with_ack": Kind(make=partial(Splunk, with_ack=True)),
    "opensearch": Kind(make=OpenSearch, has_once=True),
    "otlp": Kind(make=OpenTelemetry),
    "syslog_udp": Kind(
        make=partial(Syslog, transport="udp"),
        may_lose="a datagram that nobody takes is told of with the next one, if at all",
        may_disorder="who comes up in the middle of a batch has its end before all of it again",
        without={SLOW: "nothing answers, so nothing is waited for"} | _IN_THE_CLEAR | _NO_SECRET,
    ),
    "syslog_tcp": Kind(
        make=partial(Syslog, transport="tcp"),
        may_lose=_UNACKNOWLEDGED,
        without=_IN_THE_CLEAR | _NO_SECRET,
    ),
    "syslog_tls": Kind(
        make=partial(Syslog, transport="tls"), may_lose=_UNACKNOWLEDGED, without=_NO_SECRET
    ),
    "nats": Kind(make=Nats, has_once=True),
    # A broker knows by its number what the library sends again; that of the trial does not.
    "kafka": Kind(make=Kafka, asks=3),
    "parquet_directory": Kind(
        make=Directory, has_once=True, keeps_refusing=_NEW_CLASS, without=_NO_NETWORK
    ),
    "parquet_bucket": Kind(make=Bucket, has_once=True, keeps_refusing=_NEW_CLASS),
}


def going_through(trial: str) -> list[str]:
    """The kinds that go through a trial."""
    return [name for name, kind in KINDS.items() if trial not in kind.without]
