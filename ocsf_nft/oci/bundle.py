"""Facts about a container in its OCI bundle: the file config.json, and what engines add."""

from __future__ import annotations

import json
from typing import Any, Final

from ocsf_nft.errors import SourceError
from ocsf_nft.oci import docker, podman

#: Annotations that have a fact, by engine: containerd's CRI, CRI-O, nerdctl. The first one counts.
#: With Docker and Podman, users and authors of images may set them.
_ANNOTATIONS: Final[dict[str, tuple[str, ...]]] = {
    "name": (
        "io.kubernetes.cri.container-name", "io.kubernetes.container.name",
        "io.kubernetes.cri-o.ContainerName", "nerdctl/name",
    ),
    "image": (
        "io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName",
    ),
    "image_id": ("io.kubernetes.cri.image-ref", "io.kubernetes.cri-o.ImageRef"),
}  # fmt: skip
_POD: Final[dict[str, tuple[str, ...]]] = {
    "name": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "namespace": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
    "uid": ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
}
#: Annotation of CRI-O with a container's labels, as JSON.
_CRIO_LABELS: Final = "io.kubernetes.cri-o.Labels"
_MANAGER: Final = "io.container.manager"
#: Part of the path of each bundle that containerd makes (its runtime v2).
_CONTAINERD: Final = "/io.containerd.runtime.v2.task/"
#: Maximum length of a label or an annotation that is sent. Some engines add many kilobytes, and the
#: service refuses a body of more than 64 KiB.
_MOST_CHARACTERS: Final = 1024


def read_config(bundle: str) -> dict[str, Any]:
    """Return the content of a bundle's config.json.

    Raises SourceError if the file can't be read, has no JSON object, or has namespaces or hooks of
    another form than in the OCI specification.
    """
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"the container's {path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"the container's {path} has no JSON object")
    if not _is_usable(found):
        raise SourceError(f"the container's {path} has linux.namespaces or hooks of another form")
    return found


def _is_usable(config: dict[str, Any]) -> bool:
    """Return True if the namespaces and hooks are lists of objects, or absent."""
    linux, hooks = config.get("linux") or {}, config.get("hooks") or {}
    if not isinstance(linux, dict) or not isinstance(hooks, dict):
        return False
    lists = [each or [] for each in (linux.get("namespaces"), *hooks.values())]
    return all(
        isinstance(found, list) and all(isinstance(each, dict) for each in found) for found in lists
    )


def facts(config: dict[str, Any], bundle: str, container: str) -> dict[str, Any]:
    """Return the facts about a container that the service matches with its ``[[attach]]`` tables.

    The keys are ``runtime`` (the engine), ``name``, ``image``, ``image_id``, ``labels``,
    ``annotations`` and ``pod`` (with name, namespace and uid). Unknown facts are left out. Docker
    and Podman do not pass names, images or labels to the runtime: these come from their files.
    ``container`` is the container's id.
    """
    annotations = _texts(config.get("annotations"))
    found: dict[str, Any] = {"annotations": annotations, "labels": {}}
    if (of_docker := docker.facts(config, container)) is not None:
        labels = _texts(of_docker.pop("labels"))
        return found | {"runtime": "docker", "labels": labels, **of_docker}
    manager = annotations.get(_MANAGER)
    if manager == "libpod":
        return found | {"runtime": "podman", **podman.facts(bundle)}
    found |= _of(annotations, _ANNOTATIONS)
    if pod := _of(annotations, _POD):
        found["pod"] = pod
    if manager == "cri-o":
        found |= {"runtime": "cri-o", "labels": _labels(annotations.get(_CRIO_LABELS))}
    elif _CONTAINERD in bundle:
        found["runtime"] = "containerd"
    return found


def _of(annotations: dict[str, str], names: dict[str, tuple[str, ...]]) -> dict[str, str]:
    found = {}
    for fact, keys in names.items():
        if value := next((annotations[key] for key in keys if annotations.get(key)), None):
            found[fact] = value
    return found


def _labels(text: str | None) -> dict[str, str]:
    try:
        return _texts(json.loads(text or "{}"))
    except (ValueError, RecursionError):  # it is not CRI-O's: a container has set it
        return {}


def _texts(found: object) -> dict[str, str]:
    """Return the entries of a JSON object that are texts, shortened; an absent object is empty."""
    if not isinstance(found, dict):
        return {}
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    return {key: value[:_MOST_CHARACTERS] for key, value in texts.items()}
