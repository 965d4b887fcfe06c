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
#: Maximum size of the file that is read.
_MOST_BYTES: Final = 16 << 20
#: Files that Docker mounts into a container from the folder of the container, or from the folder of
#: the container whose network it joins.
_MOUNTED: Final = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def facts(config: dict[str, Any], container: str) -> dict[str, Any] | None:
    """Return the facts about a container with this config.json; None if it is not of Docker.

    ``container`` is its id. The keys are ``name``, ``image``, ``image_id`` and ``labels``.
    """
    mounts = config.get("mounts")
    for each in mounts if isinstance(mounts, list) else ():
        source = each.get("source") if isinstance(each, dict) else None
        if isinstance(source, str) and each.get("destination") in _MOUNTED:
            # The folders of all containers are side by side.
            folders = os.path.dirname(os.path.dirname(source))
            if (found := _read(f"{folders}/{container}/{_FILE}", container)) is not None:
                return found
    return None


def _read(path: str, container: str) -> dict[str, Any] | None:
    """Return the facts in the file of a container; None if it is not the file that Docker wrote.

    A user may mount a file from elsewhere, and make a file or a link of the user's own there.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            found = json.loads(file.read(_MOST_BYTES))
        if found["ID"] != container:
            return None
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


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # it may be a FIFO
