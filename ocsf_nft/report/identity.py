"""Facts that identify a sandbox: its host, labels, tenant, cloud and container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.json_values import at, items, text
from ocsf_nft.report.clipped import clipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_ITEMS: Final = 32
#: Attributes with a text, by the name of the fact.
_PATHS: Final = (
    ("Host", ("device", "hostname")),
    ("Kernel", ("device", "os", "kernel_release")),
    ("Instance", ("device", "instance_uid")),
    ("Tenant", ("metadata", "tenant_uid")),
    ("Cloud", ("cloud", "provider")),
    ("Account", ("cloud", "account", "uid")),
    ("Region", ("cloud", "region")),
)
_OF_CONTAINER: Final = (
    ("Container", "name"),
    ("Container id", "uid"),
    ("Runtime", "runtime"),
    ("Pod", "pod_uuid"),
)


def identity(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a fact's name and its text; the same pairs for most events of a sandbox."""
    for name, path in _PATHS:
        if found := clipped(at(event, *path)):
            yield name, found
    for label in items(at(event, "metadata", "labels"), _MOST_ITEMS):
        yield "Label", clipped(label)
    for tag in items(at(event, "metadata", "tags"), _MOST_ITEMS):
        yield "Label", f"{clipped(at(tag, 'name'))}={clipped(at(tag, 'value'))}"
    container = at(event, "src_endpoint", "container") or at(event, "device", "container")
    container = container or at(event, "actor", "process", "container")
    for name, key in _OF_CONTAINER:
        if found := clipped(at(container, key)):
            yield name, found
    if image := clipped(at(container, "image", "name")):
        yield "Image", image
    for resource in items(event.get("resources"), _MOST_ITEMS):
        if (kind := text(at(resource, "type"))) != "sandbox" and at(resource, "name"):
            yield "Resource", f"{clipped(kind, 40)} {clipped(at(resource, 'name'))}".strip()
