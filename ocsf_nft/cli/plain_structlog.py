"""Import of structlog without rich; import this module first.

structlog imports rich if it is installed, for coloured tracebacks, which ocsf-nft never shows. That
would cost 4 MB of a run's memory, and a third of the time of ``--help``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType


def _import_structlog() -> None:
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    # A module that is None in sys.modules can't be imported (importlib, "sys.modules").
    sys.modules["rich"] = cast("ModuleType", None)
    try:
        import structlog  # noqa: F401, PLC0415 - for its effect
    finally:
        del sys.modules["rich"]


_import_structlog()
