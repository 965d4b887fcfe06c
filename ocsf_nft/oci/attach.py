"""Addition of a container to the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError
from ocsf_nft.namespace_members import namespace_of, network_of
from ocsf_nft.oci.bundle import facts, read_config
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from ocsf_nft.control_request import ControlSocket
    from ocsf_nft.namespace_members import Network


def add(service: ControlSocket, container: str, *, pid: int, bundle: str, root: str = "") -> None:
    """Ask the service to fence a container; return when the container may start.

    ``container`` is its id, ``pid`` its first process, which waits. ``bundle`` is the folder with
    config.json, ``root`` the runtime's state folder. Raises FenceError if the container must not
    start: the service refuses it, can't fence it, or does not answer in time.
    """
    name = container
    try:
        config = read_config(bundle)
        known = facts(config, bundle, container)
        name = known.get("name", container)
        body: dict[str, Any] = {
            "id": container,
            "pid": pid,
            "network": _network(pid, config),
            **known,
        }
        if path := _namespace_path(config):
            body["netns"] = path
        service.add_container(container, root, body)
    except OcsfNftError as error:
        shown = name if name.isprintable() else quoted(name)
        raise FenceError(f"ocsf-nft: container {shown} does not start: {error}") from error


def _network(pid: int, config: dict[str, Any]) -> Network:
    """Return which network namespace the process ``pid`` of a created container is in."""
    try:
        found = namespace_of(pid)
    except OSError as error:
        raise AbsentError(
            f"the container's process {pid} has exited before it was fenced"
        ) from error
    # A namespace without a path was created by the runtime for this container, unless it is that of
    # the host, which Podman leaves out.
    return network_of(found, other_than=pid, is_new=_namespace_path(config) is None)


def _namespace_path(config: dict[str, Any]) -> str | None:
    """Return the path of the network namespace that a container joins; None for a new one."""
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    paths = [each.get("path") for each in namespaces if each.get("type") == "network"]
    return paths[0] or None if paths else None
