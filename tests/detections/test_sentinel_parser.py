"""Parser of Microsoft Sentinel: its form, and its attributes of events."""

from __future__ import annotations

import re
from typing import Final

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.ocsf.enums import Disposition, Status
from ocsf_nft.ocsf.versions import STORED
from tests.detections import conversion

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
