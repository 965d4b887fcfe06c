"""Sizes of lean events, in parts of full ones: ``python -m tests.conformance.lean_sizes``."""

from __future__ import annotations

import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import orjson

from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import CONTEXT, NOW_NS

_GOLDEN: Final = Path(__file__).parents[1] / "golden/events"


def saved() -> dict[str, float]:
    """Return the median part by which lean events are smaller, by the kind of events."""
    mapper = Mapper(CONTEXT)
    golden = [json.loads(path.read_text("utf-8")) for path in sorted(_GOLDEN.glob("*.json"))]
    attributed = [
        json.loads(mapper.network_activity(attempt, processed_ns=NOW_NS).to_json())
        for attempt in ATTRIBUTED.values()
    ]
    kinds: dict[str, list[dict[str, Any]]] = {
        f"golden, {uid}": [each for each in golden if each["class_uid"] == uid]
        for uid in (4001, 2004, 5019, 6002)
    }
    kinds |= {"golden": golden, "attributed": attributed, "all": golden + attributed}
    return {name: statistics.median(map(_saved, events)) for name, events in kinds.items()}


def _saved(event: dict[str, Any]) -> float:
    return 1 - len(orjson.dumps(lean(copy.deepcopy(event)))) / len(orjson.dumps(event))


if __name__ == "__main__":
    for name, part in saved().items():
        sys.stdout.write(f"{name}: {part:.0%} smaller\n")
