"""Import of structlog without the package rich; import this module before structlog.

structlog imports rich, if rich is installed, for coloured tracebacks. ocsf-nft logs none. Importing
rich would cost 4 MB of memory, and as much time as Python needs to start.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType


def _import_without_rich() -> None:
    if "rich" in sys.modules:
        return
    # A module that is None in sys.modules can't be imported (importlib, "sys.modules").
    sys.modules["rich"] = cast("ModuleType", None)
    try:
        import structlog  # noqa: F401, PLC0415 - for its effect
    finally:
        del sys.modules["rich"]


_import_without_rich()
