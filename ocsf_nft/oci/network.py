"""Network namespace of a container that was created and has not started."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from ocsf_nft.errors import AbsentError
from ocsf_nft.namespace_members import has_members, namespace_of

#: ``own``: only this container is in the namespace. ``shared``: other processes are in it, for
#: example those of the container that it joined. ``host``: the namespace of the engine itself.
Network: TypeAlias = Literal["own", "shared", "host"]


def network_of(pid: int, config: dict[str, Any]) -> Network:
    """Return which network namespace a container is in.

    ``pid`` is the container's first process, ``config`` the content of its config.json. Raises
    AbsentError if the process has exited.
    """
    try:
        found = namespace_of(pid)
    except OSError as error:
        raise AbsentError(
            f"the container's process {pid} has exited before it was fenced"
        ) from error
    # Docker names the host's namespace by a path, Podman leaves it out. So compare the namespaces.
    if found == namespace_of("self"):
        return "host"
    if namespace_path(config) is None:
        return "own"  # the runtime has created it for this container
    return "shared" if has_members(found, other_than=pid) else "own"


def namespace_path(config: dict[str, Any]) -> str | None:
    """Return the path of the network namespace that a container joins; None for a new one."""
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    paths = [each.get("path") for each in namespaces if each.get("type") == "network"]
    return paths[0] or None if paths else None
