"""Facts about a container of Podman: its name and its image.

Podman passes the annotations of a container to the runtime, and not its name, image or labels. Name
and image are in a file of containers/storage beside the folders of all containers. Labels are only
in Podman's database, so rules for containers of Podman use annotations.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

#: Files of containers/storage: of normal containers, and of those that a reboot ends (`--rm`).
_FILES: Final = ("containers.json", "volatile-containers.json")


def facts(bundle: str) -> dict[str, Any]:
    """Return the facts about a container: ``name``, ``image`` and ``image_id``; empty if unknown.

    ``bundle`` is the path of the bundle, ``…/STORAGE-containers/ID/userdata``.
    """
    folder, name = os.path.split(os.path.dirname(os.path.abspath(bundle)))
    for file in _FILES:
        for each in _read(f"{folder}/{file}"):
            if isinstance(each, dict) and each.get("id") == name:
                return _facts(each)
    return {}


def _read(path: str) -> list[Any]:
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return []  # there is no such file, or another version of Podman has another form
    return found if isinstance(found, list) else []


def _facts(container: dict[str, Any]) -> dict[str, Any]:
    try:
        metadata = json.loads(container["metadata"])
        pairs = {
            "name": metadata["name"],
            "image": metadata["image-name"],
            "image_id": metadata["image-id"],
        }
    except (ValueError, LookupError, TypeError, RecursionError):
        names = container.get("names")
        name = names[0] if isinstance(names, list) and names else None
        pairs = {"name": name, "image_id": container.get("image")}
    return {fact: value for fact, value in pairs.items() if isinstance(value, str) and value}
