"""Who did it: what the capture costs, how often each way finds it, and what memory that takes.

``python -m bench.attributing`` measures this alone, in less than a minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import capturing, command, holding, naming

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.subject import Subject

#: What is measured, a table each.
SUBJECTS: Final[tuple[Callable[[], Subject], ...]] = (capturing.run, naming.run, holding.run)


if __name__ == "__main__":
    command.run(SUBJECTS)
