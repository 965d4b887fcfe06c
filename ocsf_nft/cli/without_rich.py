"""Import of structlog and typer without the package rich; import this module before these two.

structlog, and typer before 0.16, import rich if rich is installed. Importing rich would cost 4 MB
of memory, and a third of the time of ``--help``.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from types import ModuleType

#: structlog needs rich only for coloured tracebacks. With rich, typer before 0.16 prints a wrong
#: backslash before each default value.
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
