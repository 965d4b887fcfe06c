"""Parser of Microsoft Sentinel: its form, and its attributes of events."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.ocsf.enums import Direction, Disposition, Status
from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.versions import STORED
from tests.delivery import sample_events
from tests.detections import conversion
from tests.queries.expected import at

if TYPE_CHECKING:
    from collections.abc import Callable

_PARSER: Final = (conversion.FOLDER / "sentinel/network_sessions.kql").read_text()
_PATHS: Final = {
    tuple(re.findall(r'\["(\w+)"\]', each))
    for each in re.findall(r'Event((?:\["\w+"\])+)', _PARSER)
}


def test_parser_reads_attributes_of_network_activity() -> None:
    known = columns(STORED)[4001].columns
    assert len(_PATHS) > 30
    for path in _PATHS:
        if path[0] == "unmapped":
            continue
        column = known[path[0]]
        for name in path[1:]:
            column = column.columns[name]  # type: ignore[union-attr]


def test_parser_has_balanced_brackets_and_the_enum_values() -> None:
    for opening, closing in ("()", "[]"):
        assert _PARSER.count(opening) == _PARSER.count(closing)
    assert _PARSER.count('"') % 2 == 0
    assert (Disposition.BLOCKED, Disposition.DROPPED) == (2, 6)
    assert (Status.SUCCESS, Status.FAILURE) == (1, 2)


def _column(name: str, event: dict[str, Any]) -> str:
    """Return a column with a ``case`` for an event, by the documentation of Kusto's functions."""
    found = re.search(rf"\b{name} = case\(\n(.*?)\),\n", _PARSER, re.DOTALL)
    assert found is not None
    *conditions, otherwise = (line.strip().rstrip(",") for line in found[1].splitlines())
    for each in conditions:
        condition = re.fullmatch(
            r'to(?:int|string)\(Event((?:\["\w+"\])+)\) (==|>=) ("?\w+"?), "(\w+)"', each
        )
        assert condition is not None, each
        path, operator, expected, result = condition.groups()
        value = at(event, ".".join(re.findall(r"\w+", path)))
        if operator == "==" and str(value) == expected.strip('"'):
            return result
        if operator == ">=" and value is not None and value >= int(expected):
            return result
    return otherwise.strip('"')


@pytest.mark.parametrize("shorten", [lambda event: event, lean], ids=["full", "lean"])
def test_direction_and_action_are_those_of_the_event(shorten: Callable[[Any], Any]) -> None:
    """In the values of ASIM. Smaller events have no captions."""
    directions = {int(each): each.caption.replace("Unknown", "NA") for each in Direction}
    found = set()
    for message in sample_events.messages(STORED):
        event = shorten(message.event())
        if event["class_uid"] != 4001:
            continue
        direction = directions[event["connection_info"]["direction_id"]]
        assert _column("NetworkDirection", event) == direction
        code, action = event["metadata"]["event_code"], _column("DvcAction", event)
        found.add((code, action))
        if code.endswith("-allowed"):
            assert action == "Allow"
        elif code == "firewall-logged":  # its verdict is unknown
            assert action == ""
        else:
            assert action in {"Deny", "Drop"} or code in {"aggregated", "kernel-traffic"}
    assert {code for code, _ in found} > {"egress-blocked", "egress-allowed", "firewall-logged"}
