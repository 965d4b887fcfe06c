"""Import of structlog and typer without rich; import this module first.

If rich is installed, it is imported by structlog, and by typer before 0.16. The import would cost
4 MB of a run's memory, and a third of the time of ``--help``. structlog uses rich for coloured
tracebacks, which ocsf-nft never shows. With rich, typer before 0.16 writes a backslash before each
default of ``--help``.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from types import ModuleType

_IMPORTERS: Final = ("structlog", "typer")


def _import_without_rich() -> None:
    if "rich" in sys.modules:
        return
    # A module that is None in sys.modules can't be imported (importlib, "sys.modules").
    sys.modules["rich"] = cast("ModuleType", None)
    try:
        for name in _IMPORTERS:
            importlib.import_module(name)
    finally:
        del sys.modules["rich"]


_import_without_rich()
