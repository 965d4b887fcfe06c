"""A dozen situations and the events that tell of them, as JSON that a person can read.

``python -m tests.golden.situations`` writes the files anew: read what changed before you commit it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.attempt import Attempt, Ended
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.fan_outs import fan_out
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.notices import FenceState, fence_state, gap, lifecycle, unread
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.record import Gap
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    NOW_NS,
    PROCESSES,
    RECORDS,
    TIME_NS,
    V4,
    fan_out_of,
    record,
    streak,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.events import Event

FOLDER: Final = Path(__file__).with_name("events")

_MAPPER: Final = Mapper(CONTEXT)
_SSH: Final = record(
    **V4,
    protocol=6,
    source_port=51000,
    destination_port=22,
    tcp_flags=2,
    out_interface="sb0",
    uid=1000,
    gid=1000,
    length=60,
    details={"ttl": 64, "window": 64240, "dont_fragment": True},
)


def _attempt(name: str, mapper: Mapper = _MAPPER) -> Event:
    return mapper.network_activity(Attempt.of(RECORDS[name]), processed_ns=NOW_NS)


def _finding(found: Attempt | Ended, mapper: Mapper = _MAPPER) -> Event:
    event = mapper.finding(found, processed_ns=NOW_NS)
    assert event is not None
    return event


def _fence(before: FenceState, after: FenceState, reason: str | None) -> Event:
    return fence_state(
        CONTEXT,
        sandbox="sb1",
        before=before,
        after=after,
        time_ns=TIME_NS,
        tables=["inet ocsf_nft", "netdev ocsf_nft"],
        transport="nflog",
        reason=reason,
    )


def _situations() -> Iterator[tuple[str, Event]]:
    yield "a-program-that-ignores-the-proxy", _attempt("tcp4")
    yield (
        "the-same-999-times",
        _MAPPER.network_activity(ATTEMPTS["counted tcp4"], processed_ns=NOW_NS),
    )
    yield (
        "a-program-that-is-known",
        Mapper(CONTAINED).network_activity(
            replace(Attempt.of(RECORDS["tcp4"]), process=PROCESSES["all of it"]),
            processed_ns=NOW_NS,
        ),
    )
    yield "a-name-lookup", _attempt("udp dns")
    yield "http3", _attempt("udp6 quic")
    yield "a-ping", _attempt("icmpv6 echo")
    yield "a-raw-frame", _attempt("link 88b5")
    yield "somebody-from-outside", _attempt("ingress")
    yield "a-nested-sandbox", _attempt("forward")
    yield (
        "a-scan-told-together",
        _MAPPER.network_activity(ATTEMPTS["many of egress, in full"], processed_ns=NOW_NS),
    )
    yield "a-scan-is-found", fan_out(CONTEXT, fan_out_of(), processed_ns=NOW_NS)
    metadata = replace(Attempt.of(RECORDS["metadata4"]), streak=streak(packets=1))
    yield "cloud-credentials-are-asked-for", _finding(metadata)
    again = replace(Attempt.of(_SSH), streak=streak(4, 40, 2))
    yield "ssh-again-and-again", _finding(again)
    ended = Ended(record=_SSH, streak=streak(5, 52, 2), end_ns=TIME_NS + 90_000_000_000)
    yield "ssh-has-ended", _finding(ended)
    yield "another-firewall", _attempt("foreign", Mapper(Context()))
    yield "the-fence-stands", _fence(FenceState.ABSENT, FenceState.STANDING, None)
    yield (
        "the-fence-cannot-log",
        _fence(
            FenceState.ABSENT, FenceState.DEGRADED, "the kernel has no log expression (nft_log)"
        ),
    )
    yield (
        "the-fence-is-gone",
        _fence(
            FenceState.STANDING,
            FenceState.ABSENT,
            "somebody else had removed it before this run did",
        ),
    )
    yield "ocsf-nft-starts", lifecycle(CONTEXT, activity="start", time_ns=TIME_NS)
    lost = Gap(
        transport="kmsg",
        reason="the ring was overrun",
        lost=655_090,
        since_ns=TIME_NS,
        until_ns=TIME_NS + 4_000_000_000,
    )
    yield "records-are-lost", gap(CONTEXT, lost, processed_ns=NOW_NS)
    yield (
        "nobody-read-for-a-while",
        unread(
            CONTEXT,
            sandbox="sb1",
            packets=2_034_112,
            since_ns=TIME_NS - 10_000_000_000,
            until_ns=TIME_NS,
            reason="ocsf-nft was not running, or was held up",
            processed_ns=NOW_NS,
        ),
    )


def situations() -> dict[str, Any]:
    """The events by the names of their files."""
    found = {name: json.loads(event.to_json()) for name, event in _situations()}
    for name in ("a-program-that-is-known", "ssh-again-and-again"):
        found[f"{name}-1.1.0"] = at_version(json.loads(json.dumps(found[name])), "1.1.0")
    return found


def text(event: Any) -> str:
    """An event as it stands in its file."""
    return json.dumps(event, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for stale in FOLDER.glob("*.json"):
        stale.unlink()
    for name, event in situations().items():
        (FOLDER / f"{name}.json").write_text(text(event))
