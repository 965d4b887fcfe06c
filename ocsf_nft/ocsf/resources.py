"""Resources of a Detection Finding: the sandbox that it is about, its container and its pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf.actors import container_of
from ocsf_nft.ocsf.context import labels_of
from ocsf_nft.ocsf.finding_objects import ResourceDetails
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.process import Container

#: Labels by which Kubernetes names the pod of a container, as CRI engines set them.
_POD_NAME: Final = "io.kubernetes.pod.name="
_POD_NAMESPACE: Final = "io.kubernetes.pod.namespace="


def resources_of(context: Context, sandbox: str) -> tuple[ResourceDetails, ...]:
    """Return the resources of a finding: the sandbox, its container and its Kubernetes pod.

    ``context`` has the facts about the sandbox, ``sandbox`` is its name. A sandbox that is no
    container is the only resource.
    """
    found = [
        ResourceDetails(name=visible(sandbox), type="sandbox", labels=labels_of(context)),
    ]
    container, given = container_of(context.container), context.container
    if container is None or given is None:
        return tuple(found)
    namespace = shown(_label(given, _POD_NAMESPACE))
    found.append(
        ResourceDetails(
            uid=container.uid,
            name=container.name,
            type="container",
            namespace=namespace,
            labels=container.labels,
        )
    )
    pod_name = _label(given, _POD_NAME)
    if pod_name is not None or given.pod_uid is not None:
        found.append(
            ResourceDetails(
                uid=shown(given.pod_uid), name=shown(pod_name), type="pod", namespace=namespace
            )
        )
    return tuple(found)


def _label(container: Container, prefix: str) -> str | None:
    return next(
        (each.removeprefix(prefix) for each in container.labels if each.startswith(prefix)), None
    )
