"""Commands of the CNI plugin, and the request to the service for each of them."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.cni import errors
from ocsf_nft.cni.errors import CniError
from ocsf_nft.cni.request import VERSIONS
from ocsf_nft.control_request import ProblemError, ServiceError
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.namespace_members import has_members, namespace_at, network_of

if TYPE_CHECKING:
    from ocsf_nft.cni.request import Request
    from ocsf_nft.namespace_members import Network

#: Path of the namespace of a process: `ctr` adds a network after the process has been created.
_OF_PROCESS: Final = re.compile("/proc/([0-9]+)/ns/net")
#: Pairs of CNI_ARGS with facts about the pod, as kubelet's runtimes give them.
_POD: Final = {
    "name": "K8S_POD_NAME",
    "namespace": "K8S_POD_NAMESPACE",
    "uid": "K8S_POD_UID",
}


def run(request: Request) -> dict[str, Any] | None:
    """Run the command of a request; return its result, or None for a command without.

    Raises CniError if it fails.
    """
    match request.command:
        case "VERSION":
            return {"cniVersion": request.version, "supportedVersions": list(VERSIONS)}
        case "ADD":
            result = request.previous_result
            _add(request)
            return result
        case "CHECK":
            # The service answers when the fence is active. It restores one that is not. By now the
            # container's own processes are in the namespace.
            _add(request, is_used=True)
        case "DEL":
            _delete(request)
        case "STATUS":
            _check_service(request)
        case "GC":
            # The service notices the end of each namespace, and releases its sandbox then.
            pass
        case other:
            raise CniError(
                errors.WRONG_ENVIRONMENT, f"CNI_COMMAND is {other}, which this plugin has not"
            )
    return None


def _add(request: Request, *, is_used: bool = False) -> None:
    container, netns = _container(request), _netns(request)
    network = _network(netns)
    body: dict[str, Any] = {
        "id": container,
        "netns": netns,
        "network": "own" if is_used and network == "shared" else network,
        "runtime": "cni",
    }
    if pod := _pod(request):
        body["pod"] = pod
        if "name" in pod:
            body["name"] = pod["name"]
    if request.policy is not None:
        body["policy"] = request.policy
    if request.sandbox is not None:
        body["sandbox"] = request.sandbox
    called = body.get("name", container)
    try:
        request.service.add_container(container, request.network, body)
    except ProblemError as error:
        raise CniError(errors.REFUSED, f"{called} does not start: {error}") from error
    except ServiceError as error:
        raise CniError(errors.NO_SERVICE, f"{called} does not start: {error}") from error


def _delete(request: Request) -> None:
    """End the sandbox of a container without processes.

    A failure must not keep the container: the service also notices the end of the namespace. And a
    container that loses one of several networks must keep its fence, as its processes run.
    """
    container = _container(request)
    if request.netns is not None and _is_in_use(request.netns):
        return
    try:
        request.service.release_container(container, request.network)
    except (ProblemError, ServiceError) as error:
        sys.stderr.write(f"ocsf-nft-cni: the sandbox of {container} was not released: {error}\n")


def _check_service(request: Request) -> None:
    try:
        request.service.request("GET", "/v1/status")
    except OcsfNftError as error:
        raise CniError(errors.UNAVAILABLE, f"no container can be fenced: {error}") from error


def _network(netns: str) -> Network:
    try:
        namespace = namespace_at(netns)
    except OSError as error:
        raise CniError(
            errors.WRONG_ENVIRONMENT, f"the network namespace {netns} can't be read: {error}"
        ) from error
    process = _OF_PROCESS.fullmatch(netns)
    return network_of(namespace, other_than=None if process is None else int(process[1]))


def _is_in_use(netns: str) -> bool:
    try:
        return has_members(namespace_at(netns))
    except OSError:  # it has been removed
        return False


def _pod(request: Request) -> dict[str, str]:
    found = {fact: request.arguments.get(name) for fact, name in _POD.items()}
    return {fact: value for fact, value in found.items() if value}


def _container(request: Request) -> str:
    if request.container is None:
        raise _missing("CNI_CONTAINERID")
    return request.container


def _netns(request: Request) -> str:
    if request.netns is None:
        raise _missing("CNI_NETNS")
    return request.netns


def _missing(name: str) -> CniError:
    return CniError(errors.WRONG_ENVIRONMENT, f"{name} is missing")
