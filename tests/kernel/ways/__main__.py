"""Command ``python -m tests.kernel.ways [PAGE | PART OF A VARIANT | FORM]…``.

Without a page, it runs variants in forms (all by default), and prints the outcomes. With the path
of a page (``docs/explanation/ways-round.md``), it runs all, and writes expected.json and the page.
It then has two passes: variants that have brought something out get a seat for themselves in the
second one, so that reports are seen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.ways import expected, matrix, page
from tests.kernel.ways.variant import FORMS
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Collection, Container

    from tests.kernel.ways.variant import Form


def main() -> None:
    """Run the command."""
    words = sys.argv[1:]
    begun = time.monotonic()
    pages = [Path(word) for word in words if word.endswith(".md")]
    forms = [form for form in FORMS if form in words] or FORMS
    parts = [word for word in words if word not in FORMS and not word.endswith(".md")]
    keys = [key for key in VARIANTS if not parts or any(part in key for part in parts)]
    found = _run([(key, form) for form in forms for key in keys], expected.loud())
    again = {each for each, outcome in found.items() if outcome.verdict == "OUT"}
    if again - expected.loud():
        found |= _run(sorted(again), again)
    for written in pages:
        expected.write(found)
        written.write_text(page.page(expected.read()), encoding="utf-8")
    for (key, form), outcome in sorted(found.items()):
        seen = f"{outcome.error[:80]!r} {outcome.detail[:120]}"
        print(f"{key:58} {form:10} {outcome.verdict:9} {seen}")  # noqa: T201 - a command
    for each in sorted(Counter((form, each.verdict) for (_, form), each in found.items()).items()):
        print(*each)  # noqa: T201 - a command
    print(f"{len(keys)} variants, {time.monotonic() - begun:.1f} s")  # noqa: T201 - a command


def _run(
    pairs: Collection[tuple[str, Form]], loud: Container[tuple[str, Form]]
) -> dict[tuple[str, Form], matrix.Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        return matrix.run(Path(folder), pairs, loud)


if __name__ == "__main__":
    main()
