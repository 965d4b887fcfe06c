"""Imported first: structlog without rich, which it would take along wherever that is installed.

For tracebacks in colour, which we never show, that is 4 MB of a run's memory, and a third of the
time that ``--help`` takes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType


def _import_structlog() -> None:
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    # What is None there can't be imported (importlib, "sys.modules").
    sys.modules["rich"] = cast("ModuleType", None)
    try:
        import structlog  # noqa: F401, PLC0415 - for its effect, here
    finally:
        del sys.modules["rich"]


_import_structlog()
