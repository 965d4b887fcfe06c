"""Facts about a container of Docker: its name, its image and its labels.

Docker passes only the id and the annotations of a container to the runtime. The rest is in
config.v2.json, in the folder of the container below Docker's data folder. Docker has this file
since version 1.10 (2016), and writes it before it creates the container in the runtime.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

_FILE: Final = "config.v2.json"
#: Files that Docker mounts into a container from the folder of the container.
_MOUNTED: Final = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def facts(config: dict[str, Any], container: str) -> dict[str, Any] | None:
    """Return the facts about a container with this config.json; None if it is not of Docker.

    ``container`` is its id. The keys are ``name``, ``image``, ``image_id`` and ``labels``.
    """
    mounts = config.get("mounts")
    for each in mounts if isinstance(mounts, list) else ():
        source = each.get("source") if isinstance(each, dict) else None
        if isinstance(source, str) and each.get("destination") in _MOUNTED:
            folder = os.path.dirname(source)
            # A user may mount a file from another folder, with a config.v2.json of the user's own.
            # The user can't name that folder as the id, which Docker chooses later.
            if os.path.basename(folder) == container and (found := _read(folder)) is not None:
                return found
    return None


def _read(folder: str) -> dict[str, Any] | None:
    try:
        with open(f"{folder}/{_FILE}", "rb") as file:
            found = json.load(file)
        settings = found["Config"]
        known = {
            "name": found["Name"].removeprefix("/"),
            "image": settings["Image"],
            "image_id": found["Image"],
        }
        labels = settings.get("Labels") or {}
        return {key: value for key, value in known.items() if value} | {"labels": dict(labels)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # a file of another engine, or of another program
