"""Import of structlog on demand and without the package rich.

Commands that log nothing start without structlog, which is slow to import. If rich is installed,
structlog imports it for coloured tracebacks. ocsf-nft logs none. Importing rich would cost 4 MB of
memory, and as much time as Python needs to start.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(configure: Callable[[], None]) -> None:
    """Call ``configure`` as soon as structlog is imported: now, or before its first user runs.

    A later call replaces ``configure``.
    """
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _Finder)]
    if "structlog" in sys.modules:
        configure()
    else:
        sys.meta_path.insert(0, _Finder(configure))


# No subclasses of importlib.abc, which imports tempfile and shutil: Python needs only the methods.
class _Finder:
    def __init__(self, configure: Callable[[], None]) -> None:
        self._configure = configure

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - part of the interface
        target: ModuleType | None = None,  # noqa: ARG002 - the same
    ) -> ModuleSpec | None:
        if fullname != "structlog":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Loader(spec.loader, self._configure))
        return spec


class _Loader:
    def __init__(self, loader: Loader, configure: Callable[[], None]) -> None:
        self._loader = loader
        self._configure = configure

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if "rich" in sys.modules:
            self._loader.exec_module(module)
        else:
            # A module that is None in sys.modules can't be imported (importlib, "sys.modules").
            sys.modules["rich"] = cast("ModuleType", None)
            try:
                self._loader.exec_module(module)
            finally:
                del sys.modules["rich"]
        self._configure()
