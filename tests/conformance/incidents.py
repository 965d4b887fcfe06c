"""Incidents that continue, incidents that ended, and fan-outs of every kind, for findings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.attempt import Attempt, FanOut, Incident, IncidentEnd
from tests.conformance.attributed import (
    BY_THE_USER,
    ONE_OF_SEVERAL,
    PROCESSES,
    SEVERAL_IN_ONE_WINDOW,
    done_by,
)
from tests.conformance.corpus import QUESTIONS, RECORDS, SAMPLE, TIME_NS, TUNNEL, as_allowed

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution


def incident(
    windows: int = 1,
    packets: int = 12,
    found_at: int | None = 1,
    attribution: Attribution | None = None,
) -> Incident:
    """Return an incident as accounting counts it; by default a finding from its first attempt."""
    return Incident(
        identity="1f0c/egress/0a/kmsg:boot:5678",
        windows=windows,
        packets=packets,
        found_at=found_at,
        start_ns=TIME_NS,
        latest=tuple(f"kmsg:boot:{5678 + number}" for number in range(min(windows, 10))),
        attribution=attribution,
    )


_INCIDENTS: Final = {
    "first": incident(),
    "none": incident(packets=1, found_at=None),
    "later": incident(3, 40, 3),
    "much later": incident(17, 4000, 3),
}
#: The attribution of the attempts of an incident, if known.
_BY: Final = {
    "first": done_by(PROCESSES["all of it"]),
    "none": BY_THE_USER,
    "later": SEVERAL_IN_ONE_WINDOW,
    "much later": ONE_OF_SEVERAL,
}
_RECORDS_OF_INCIDENTS: Final = {
    name: RECORDS[name]
    for name in (
        "tcp4", "tcp6", "udp dns", "udp6 quic", "icmp echo", "sctp", "gre", "metadata4",
        "metadata6", "forward", "forward from outside", "ingress", "link ip", "link arp",
        "link 88b5", "guard", "guard frame", "a later rule",
    )
}  # fmt: skip
_REFUSED: Final = {
    f"{record}, {name}": replace(
        Attempt.of(_RECORDS_OF_INCIDENTS[record]),
        incident=replace(each, attribution=by),
        attribution=by,
    )
    for record in _RECORDS_OF_INCIDENTS
    for name, each in _INCIDENTS.items()
    for by in (_BY[name] if record.startswith("tcp") else None,)
}
_OF_DNS: Final = {
    "dns tunnel": replace(
        Attempt.of(RECORDS["udp dns"]),
        incident=replace(
            incident(3, 60, 3), questions=TUNNEL, attribution=done_by(PROCESSES["all of it"])
        ),
    ),
    "dns queries": replace(
        Attempt.of(RECORDS["udp dns"]), incident=replace(incident(), questions=QUESTIONS)
    ),
}
#: Attempts of continuing incidents.
GOING_ON: Final = (
    _REFUSED
    | _OF_DNS
    | {
        f"{name}, allowed": replace(attempt, record=as_allowed(attempt.record))
        for name, attempt in _REFUSED.items()
    }
)
ENDED: Final = {
    name: IncidentEnd(
        record=each.record,
        incident=each.incident,
        end_ns=TIME_NS + 7_000_000_000,
    )
    for name, each in GOING_ON.items()
    if each.incident is not None
}


def fan_out_of(**facts: Any) -> FanOut:
    """Return a scan of one port."""
    defaults: dict[str, Any] = {
        "identity": "1f0c/egress/1000/1767225600000000000",
        "stage": "begun",
        "sandbox": "sb1",
        "rule": "egress",
        "uid": 1000,
        "flows": 4711,
        "destinations": 4711,
        "ports": 1,
        "packets": 25_000,
        "sample": SAMPLE,
        "start_ns": TIME_NS,
        "end_ns": TIME_NS + 3_200_000_000,
    }
    return FanOut(**(defaults | facts))


_OF_A_FAN_OUT: Final[dict[str, dict[str, Any]]] = {
    "in full": {},
    "unknown": {"uid": None},
    "without a sample": {"uid": None, "sample": ()},
    "of no port": {"ports": 0},
    "of one address": {"destinations": 1, "ports": 4096},
    "at once": {"end_ns": TIME_NS},
    "allowed": {"verdict": "permit"},
    "of any name": {"sandbox": "\x1b\udc80\u202e", "identity": "\udc80"},
}
FAN_OUTS: Final = {
    f"{stage}, {rule}, {name}": fan_out_of(stage=stage, rule=rule, **facts)
    for stage in ("begun", "goes on", "ended")
    for rule in ("egress", "forward", "ingress", "link", "guard", "vm-input", "pod-forward")
    for name, facts in _OF_A_FAN_OUT.items()
}
