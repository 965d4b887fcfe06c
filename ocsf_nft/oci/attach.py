"""Addition of a container to the service, and its removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocsf_nft.container_path import container_path
from ocsf_nft.control_request import RELEASED, ProblemError
from ocsf_nft.errors import FenceError, OcsfNftError
from ocsf_nft.oci.bundle import facts, read_config
from ocsf_nft.oci.network import namespace_path, network_of

if TYPE_CHECKING:
    from ocsf_nft.control_request import Service


def add(service: Service, container: str, *, pid: int, bundle: str, root: str = "") -> None:
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
            "network": network_of(pid, config),
            **known,
        }
        if path := namespace_path(config):
            body["netns"] = path
        service.request("PUT", container_path(container, root), body)
    except OcsfNftError as error:
        raise FenceError(f"ocsf-nft: container {name} does not start: {error}") from error


def remove(service: Service, container: str, *, root: str = "") -> None:
    """Ask the service to end the sandbox of a deleted container, if it has one of its own.

    Raises ProblemError if the service fails, ServiceError if it does not answer.
    """
    try:
        service.request("DELETE", container_path(container, root))
    except ProblemError as error:
        if error.status not in RELEASED:
            raise
