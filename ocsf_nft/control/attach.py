"""Decision about a new container by the ``[[attach]]`` tables: fence it, allow it or refuse it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import ValidationError

from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.config.labels import MOST, check_label
from ocsf_nft.config.sandbox import SandboxConfig
from ocsf_nft.config.sentence import sentence_of
from ocsf_nft.control.container_facts import MOST_STORED, sandbox_name
from ocsf_nft.errors import ContainerRefusedError, UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.config.attach import MatchConfig
    from ocsf_nft.control.container_facts import ContainerFacts

#: Prefixes of image names that people do not write: of Podman and of Docker Hub.
_IMPLIED: Final = ("localhost/", "docker.io/library/", "docker.io/")
_TAG: Final = re.compile(r"(:[^/:@]+|@[^/@]+)\Z")


class Decision(NamedTuple):
    """Decision to fence a container: its sandbox, and the name of the table that decided."""

    sandbox: SandboxConfig
    table: str


def decide(
    key: str, facts: ContainerFacts, tables: Sequence[AttachConfig], *, is_covered: bool = False
) -> Decision | None:
    """Return the decision about a container; None if it may start without a fence of its own.

    ``key`` identifies it in the control API. ``is_covered`` is true if another sandbox encloses its
    network namespace. Raises ContainerRefusedError if the container must not start.
    """
    table = _table(facts, tables)
    if table is not None and table.action == "refuse":
        raise ContainerRefusedError(f"the [[attach]] table {table.name} refuses it")
    if is_covered:
        return None
    if table is None:
        image = f" (image {facts.image})" if facts.image else ""
        raise ContainerRefusedError(
            f'no [[attach]] table matches it{image}: add one, with action = "allow" if it needs no '
            "fence"
        )
    if table.action == "allow":
        return None
    _require_fenceable(facts)
    return Decision(_sandbox(key, facts, table), table.name)


def _table(facts: ContainerFacts, tables: Sequence[AttachConfig]) -> AttachConfig | None:
    """Return the table that decides: that of the facts, or the first that matches; or None."""
    if facts.sandbox is not None:
        return _own_table(facts.sandbox)
    requested = facts.requested
    if len(requested) > 1:
        raise ContainerRefusedError(
            f"it asks for several policies ({', '.join(sorted(requested))}): leave one"
        )
    for name in requested - {each.name for each in tables}:
        raise ContainerRefusedError(
            f"it asks for the policy {quoted(name)}, and no [[attach]] table has this name"
        )
    found = next((each for each in tables if matches(each, facts)), None)
    for name in requested - {found.name if found else None}:
        decisive = "none" if found is None else f"the table {found.name}"
        raise ContainerRefusedError(
            f"it asks for the policy {name}, but {decisive} matches it first: remove the "
            "annotation or label, or reorder the [[attach]] tables",
        )
    return found


def _own_table(keys: dict[str, Any]) -> AttachConfig:
    try:
        table = AttachConfig.model_validate({**keys, "name": "cni"})
        table.check()
    except ValidationError as error:
        raise ContainerRefusedError(
            "the policy of its CNI plugin is wrong: "
            + sentence_of(error, AttachConfig).removeprefix(": "),
        ) from error
    return table


def matches(table: AttachConfig, facts: ContainerFacts) -> bool:
    """Return True if an ``[[attach]]`` table is for a container with these facts."""
    match = table.match
    if match.is_empty:
        return table.name in facts.requested
    return all(
        not patterns or any(_has(pattern, names) for pattern in patterns)
        for patterns, names in _pairs(match, facts)
    ) and all(
        _has(pattern, _values(facts.labels.get(key), facts.annotations.get(key)))
        for key, pattern in match.label.items()
    )


def _pairs(
    match: MatchConfig, facts: ContainerFacts
) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    yield match.image, list(_image_names(facts.image))
    yield match.container, [facts.called]
    yield match.runtime, _values(facts.runtime)
    yield match.namespace, _values(facts.pod.namespace)
    yield match.pod, _values(facts.pod.name)


def _values(*found: str | None) -> list[str]:
    return [each for each in found if each is not None]


def _has(pattern: str, names: Sequence[str]) -> bool:
    # In fnmatch, [ begins a set of characters; in our patterns it is a normal character.
    escaped = pattern.replace("[", "[[]")
    return any(fnmatchcase(name, escaped) for name in names)


def _image_names(image: str | None) -> Iterator[str]:
    """Yield the full name and the short names of an image."""
    if image is None:
        return
    full = image if _TAG.search(image) else f"{image}:latest"
    # The digest may stand for the tag: agent:* is for each version of the image.
    for name in (full, full.replace("@", ":")):
        yield name
        for prefix in _IMPLIED:
            if name.startswith(prefix):
                yield name.removeprefix(prefix)


def _require_fenceable(facts: ContainerFacts) -> None:
    if facts.network == "host":
        raise ContainerRefusedError(
            "it shares the network namespace of the host, which is never fenced: give it a network "
            'of its own, or an [[attach]] table with action = "allow"',
        )
    if facts.network == "shared":
        raise ContainerRefusedError(
            "it joins a network namespace of other processes that no fence encloses: start the "
            "container with that network with a fence",
        )


def _sandbox(key: str, facts: ContainerFacts, table: AttachConfig) -> SandboxConfig:
    where = {"pid": facts.pid} if facts.pid is not None else {"netns": facts.netns}
    return SandboxConfig.model_validate(
        table.policy()
        | where
        | {
            "name": sandbox_name(key, facts.called),
            "install": True,
            "container": _container(facts),
        }
    )


def _container(facts: ContainerFacts) -> dict[str, Any]:
    """Return the container's names for its events, shortened to the length of their keys."""
    found = {
        "uid": facts.id,
        "name": facts.name,
        "runtime": facts.runtime,
        # Some engines report no id, and OCSF requires one.
        "image_uid": facts.image_id or facts.image,
        "image_name": facts.image,
        "pod_uid": facts.pod.uid,
        "orchestrator": "kubernetes" if facts.pod.name is not None else None,
    }
    names = {key: value[:MOST_STORED] for key, value in found.items() if value is not None}
    return names | {"labels": _labels(facts)}


def _labels(facts: ContainerFacts) -> dict[str, str]:
    """Return the labels of a container, with those by which Kubernetes names the pod first."""
    pod = {
        "io.kubernetes.pod.name": facts.pod.name,
        "io.kubernetes.pod.namespace": facts.pod.namespace,
    }
    found: dict[str, str] = {}
    for key, value in [*pod.items(), *sorted(facts.labels.items())]:
        if value is not None and len(found) < MOST and _is_label(key, value):
            found.setdefault(key, value)
    return found


def _is_label(key: str, value: str) -> bool:
    try:
        check_label(key, value)
    except UsageError:
        return False
    return True
