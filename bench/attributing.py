"""Benchmarks of attribution: cost of the capture, success of each method, and memory.

``python -m bench.attributing`` runs only these, in less than a minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import capturing, command, holding, naming

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.subject import Subject

#: The measured subjects, one table each.
SUBJECTS: Final[tuple[Callable[[], Subject], ...]] = (capturing.run, naming.run, holding.run)


if __name__ == "__main__":
    command.run(SUBJECTS)
