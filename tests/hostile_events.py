"""Hostile events: any text in the name of a process, a log prefix or an event file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.fence_state_events import FenceState, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import records_dropped
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.record import Gap
from tests.conformance import protections
from tests.conformance.attributed import SEVERAL_IN_ONE_WINDOW
from tests.conformance.corpus import ATTEMPTS, CONTEXT, NOW_NS, RECORDS, TIME_NS
from tests.conformance.incidents import FAN_OUTS
from tests.strategies import ATTRIBUTIONS, HOSTILE_TEXT, records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.event_base import Event

#: Text that controls a terminal, forges a line or a field, is not UTF-8, or is very long.
NAMES = HOSTILE_TEXT | st.sampled_from(
    [
        "\x1b]0;owned\x07",
        "\x9b2J",
        "\x7f",
        "a\nb\r\n\u2028\u2029\x85c",
        "\u202e\u2066\u200f",
        "\ufeff",
        "\"quoted\" 'name' \\x1b",
        "curl[1]  TCP 203.0.113.7:443 https  refused  [egress]",
        "<165>1 - - - - - -",
        "\udcff\udc80",
        "\ud83d",
        "x" * 4096,
        "\x1b" * 4096,
        "\u05d0\u0661\u0300",
    ]
)

PROCESS: dict[str, Any] = {
    "name": "curl",
    "pid": 4242,
    "path": "/usr/bin/curl",
    "file": {"name": "curl", "path": "/usr/bin/curl", "type_id": 1, "type": "Regular File"},
    "cmd_line": "curl https://203.0.113.7",
}


def _read(event: Event) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(event.to_json())
    return read


def whole_events() -> list[dict[str, Any]]:
    """Return an event of each class and kind, as JSON reads it."""
    mapper = Mapper(CONTEXT)
    several = replace(Attempt.of(RECORDS["tcp4"]), attribution=SEVERAL_IN_ONE_WINDOW)
    attempts = (Attempt.of(RECORDS["tcp4"]), *ATTEMPTS.values(), several)
    mapped = [_read(mapper.network_activity(each, processed_ns=NOW_NS)) for each in attempts]
    mapped[0]["actor"]["process"] = PROCESS
    dropped = Gap(transport="kmsg", reason="overrun", dropped=3, since_ns=TIME_NS, until_ns=TIME_NS)
    return [
        *mapped,
        *(_read(fan_out(CONTEXT, each, processed_ns=NOW_NS)) for each in FAN_OUTS.values()),
        *(_read(finding) for _, finding in protections.findings(CONTEXT)),
        _read(
            fence_state(
                CONTEXT,
                sandbox="sb1",
                before=FenceState.ACTIVE,
                after=FenceState.ALTERED,
                time_ns=TIME_NS,
                tables=["inet ocsf_nft"],
                transport="nflog",
                reason="the table is not as it was installed",
            )
        ),
        _read(records_dropped(CONTEXT, dropped, processed_ns=NOW_NS)),
    ]


_WHOLE = st.deferred(lambda: st.sampled_from(whole_events()))
_JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 1 << 63, 10**400, 99])
    | st.floats()
    | NAMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each slot of a JSON value: its container, and its key or index there."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _slots(value[key])


@st.composite
def broken_events(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an event in which some attributes are missing or replaced."""
    event: dict[str, Any] = json.loads(json.dumps(draw(_WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        slots = list(_slots(event))
        if slots:
            holder, key = draw(st.sampled_from(slots))
            if draw(st.booleans()):
                holder[key] = draw(_JUNK)
            else:
                del holder[key]
    return event


@st.composite
def _with_names(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a complete event in which each name from outside is an arbitrary text."""
    event: dict[str, Any] = json.loads(json.dumps(draw(_WHOLE)))
    group = {"uid": "1000", "name": draw(NAMES)}
    process = {
        "pid": 4242,
        "name": draw(NAMES),
        "path": draw(NAMES),
        "cmd_line": draw(NAMES),
        "file": {"name": draw(NAMES), "path": draw(NAMES), "hashes": [{"value": draw(NAMES)}]},
        "container": {"name": draw(NAMES), "pod_uuid": draw(NAMES)},
        "user": {"uid": "1000", "groups": [group]},
    }
    actor: dict[str, Any] = {"user": {"uid": "1000", "name": draw(NAMES), "groups": [group]}}
    if draw(st.booleans()):
        actor["process"] = process
    seen = draw(st.lists(st.fixed_dictionaries({"pid": st.just(4242), "name": NAMES}), max_size=3))
    return event | {
        "actor": actor,
        "device": {"hostname": draw(NAMES), "type_id": 0},
        "firewall_rule": {"name": draw(NAMES)},
        "status_detail": draw(NAMES),
        "message": draw(NAMES),
        "src_endpoint": {"name": draw(NAMES), "interface_name": draw(NAMES)},
        "dst_endpoint": {"hostname": draw(NAMES), "port": 443},
        "enrichments": [
            {
                "name": "actor.process",
                "type": "attribution",
                "data": {"reason": draw(NAMES), "processes": seen, "unnamed": draw(_JUNK)},
            }
        ],
        "unmapped": {"prefix": draw(NAMES), "sandbox": draw(NAMES), "unit": draw(NAMES)},
    }


@st.composite
def _mapped(draw: st.DrawFn) -> dict[str, Any]:
    attempt = replace(Attempt.of(draw(records())), attribution=draw(st.none() | ATTRIBUTIONS))
    return _read(Mapper(CONTEXT).network_activity(attempt, processed_ns=NOW_NS))


#: Our events with hostile names, and arbitrary events.
EVENTS = _with_names() | _mapped() | broken_events()
