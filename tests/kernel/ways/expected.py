"""Expected outcomes: the file expected.json, one table of verdicts by variant and form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.kernel.ways.variant import FENCED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kernel.ways.matrix import Outcome, Verdict
    from tests.kernel.ways.variant import Form

FILE: Final = Path(__file__).with_name("expected.json")


def read() -> dict[tuple[str, Form], Verdict]:
    """Return the expected verdict of each variant in each form of a fence."""
    table = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {
        (key, form): verdict
        for key, row in table.items()
        for form, verdict in zip(FENCED, row, strict=True)
    }


def write(outcomes: Mapping[tuple[str, Form], Outcome]) -> None:
    """Write the verdicts of a run as the expected ones."""
    rows = {key: [outcomes[key, form].verdict for form in FENCED] for key, _ in outcomes}
    lines = (f"{json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(rows.items()))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def loud() -> set[tuple[str, Form]]:
    """Return the variants that bring bytes out, by form: they need a pause for their reports."""
    return {each for each, verdict in read().items() if verdict in {"reported", "OUT"}}
