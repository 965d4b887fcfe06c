"""Network namespace of a container that was created and has not started."""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias

from ocsf_nft.errors import AbsentError

#: ``own``: only this container is in the namespace. ``shared``: other processes are in it, for
#: example those of the container that it joined. ``host``: the namespace of the engine itself.
Network: TypeAlias = Literal["own", "shared", "host"]


def network_of(pid: int, config: dict[str, Any]) -> Network:
    """Return which network namespace a container is in.

    ``pid`` is the container's first process, ``config`` the content of its config.json. Raises
    AbsentError if the process has exited.
    """
    try:
        found = _namespace(pid)
    except OSError as error:
        raise AbsentError(
            f"the container's process {pid} has exited before it was fenced"
        ) from error
    # Docker names the host's namespace by a path, Podman leaves it out. So compare the namespaces.
    if found == _namespace("self"):
        return "host"
    if namespace_path(config) is None:
        return "own"  # the runtime has created it for this container
    return "shared" if _has_others(found, pid) else "own"


def namespace_path(config: dict[str, Any]) -> str | None:
    """Return the path of the network namespace that a container joins; None for a new one."""
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    paths = [each.get("path") for each in namespaces if each.get("type") == "network"]
    return paths[0] or None if paths else None


def _has_others(namespace: tuple[int, int], pid: int) -> bool:
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != pid:
            try:
                if _namespace(name) == namespace:
                    return True
            except OSError:  # the process has exited, or it is a kernel thread
                continue
    return False


def _namespace(process: int | str) -> tuple[int, int]:
    status = os.stat(f"/proc/{process}/ns/net")
    return status.st_dev, status.st_ino
