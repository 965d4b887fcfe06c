"""Network configuration of a node: the plugin in the list that the container runtime reads."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import DeliveryError, SourceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

#: Type of the plugin: the name of its program.
TYPE: Final = "ocsf-nft-cni"
#: Names that container runtimes read. They use the first file in the order of the names.
_SUFFIXES: Final = (".conflist", ".conf", ".json")


def network_file(folder: Path) -> Path | None:
    """Return the file that the container runtime uses; None if there is none yet.

    Raises SourceError if the folder can't be read.
    """
    try:
        found = sorted(
            path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"the folder {folder} can't be read: {error.strerror}") from error
    return found[0] if found else None


def add_plugin(path: Path, plugin: dict[str, Any]) -> bool:
    """Make a plugin the last one of a network configuration; return True if that changed the file.

    Raises UsageError if the file has a single plugin, SourceError if it can't be read,
    DeliveryError if it can't be written.
    """
    found = _read(path)
    others = [each for each in found["plugins"] if each.get("type") != TYPE]
    return _write(path, found, [*others, {"type": TYPE, **plugin}])


def remove_plugin(path: Path) -> bool:
    """Remove the plugin from a network configuration; return True if that changed the file.

    Raises the errors of :func:`add_plugin`.
    """
    found = _read(path)
    return _write(path, found, [each for each in found["plugins"] if each.get("type") != TYPE])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"the network configuration {path} can't be read: {error}") from error
    plugins = found.get("plugins") if isinstance(found, dict) else None
    if not isinstance(plugins, list) or not all(isinstance(each, dict) for each in plugins):
        raise UsageError(
            f"the network configuration {path} is no list of plugins: write it as a .conflist"
        )
    return dict(found)


def _write(path: Path, found: dict[str, Any], plugins: list[dict[str, Any]]) -> bool:
    if found["plugins"] == plugins:
        return False
    # No suffix that a container runtime reads.
    temporary = path.with_name(f".{path.name}.ocsf-nft")
    try:
        temporary.write_text(json.dumps(found | {"plugins": plugins}, indent=2) + "\n", "utf-8")
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except OSError as error:
        raise DeliveryError(
            f"the network configuration {path} can't be written: {error.strerror}"
        ) from error
    return True
