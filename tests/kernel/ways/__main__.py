"""Command ``python -m tests.kernel.ways [--expect] [PART OF A VARIANT | FORM]…``.

It runs the variants (all by default) and prints the outcomes. With ``--expect`` it runs all in two
passes, and writes the outcomes to expected.json. The second pass gives each variant that has
brought something out a seat for itself, so that reports are seen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.kernel.ways import expected, matrix
from tests.kernel.ways.variant import FORMS
from tests.kernel.ways.variants import VARIANTS


def main() -> None:
    """Run the command."""
    words = [each for each in sys.argv[1:] if not each.startswith("--")]
    forms = [form for form in FORMS if form in words] or FORMS
    parts = [each for each in words if each not in FORMS]
    only = [key for key in VARIANTS if not parts or any(part in key for part in parts)]
    expects = "--expect" in sys.argv
    begun = time.monotonic()
    found = _run(only, forms, expected.alone())
    if expects:
        again = {
            (key, form)
            for (key, form), outcome in found.items()
            if outcome.verdict == "OUT"
        }
        keys = list(dict.fromkeys(key for key, _ in again))
        for form in FORMS:
            of_form = [key for key in keys if (key, form) in again]
            if of_form:
                found |= _run(of_form, [form], again)
        expected.write(found)
    for (key, form), outcome in sorted(found.items()):
        print(f"{key:58} {form:10} {outcome.verdict:9} {outcome.error[:80]!r} {outcome.detail[:120]}")
    print(Counter((form, each.verdict) for (_, form), each in found.items()))
    print(f"{len(only)} variants, {time.monotonic() - begun:.1f} s")


def _run(only, forms, alone):
    with tempfile.TemporaryDirectory() as folder:
        return matrix.run(Path(folder), alone, only=only, forms=forms)


if __name__ == "__main__":
    main()
