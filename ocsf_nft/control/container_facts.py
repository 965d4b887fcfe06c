"""Facts about a container, as an OCI runtime, a hook or a CNI plugin sends them."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, Table

#: Annotation or label of a container with the name of an ``[[attach]]`` table.
POLICY: Final = "org.ocsf-nft.policy"
#: Characters of an id or a name that a sandbox stores.
MOST_STORED: Final = 256
_MAX_NAME: Final = 64
_ID_LENGTH: Final = 12
_LONG_ID: Final = re.compile("[0-9a-f]{64}")
_NO_NAME_CHARACTERS: Final = re.compile("[^A-Za-z0-9._-]+")
_Text = Annotated[str, Field(min_length=1, max_length=1024)]


class PodFacts(Table):
    """Kubernetes pod of a container."""

    name: _Text | None = None
    """Name of the pod."""
    namespace: _Text | None = None
    """Kubernetes namespace of the pod."""
    uid: _Text | None = None
    """Identifier of the pod."""


class ContainerFacts(Table):
    """Facts about a container that has been created and has not started.

    ``pid`` is its first process, which waits, or ``netns`` the path of its network namespace; one
    is required, and the process decides if both are given. ``network`` is ``own`` for a namespace
    with no other processes, ``shared`` for one with others, ``host`` for that of the engine.
    """

    id: _Text
    """Identifier of the container in its runtime."""
    pid: Annotated[int, Field(strict=True, gt=0)] | None = None
    """The container's first process."""
    netns: Annotated[str, FileName] | None = None
    """Path of its network namespace, as the engine sees it."""
    network: Literal["own", "shared", "host"] = "own"
    """Processes that are in its network namespace."""
    runtime: _Text | None = None
    """Name of the engine."""
    name: _Text | None = None
    """Name of the container."""
    image: _Text | None = None
    """Name of the image."""
    image_id: _Text | None = None
    """Identifier of the image."""
    labels: dict[str, str] = Field(default={})
    """Labels of the container."""
    annotations: dict[str, str] = Field(default={})
    """Annotations of the container."""
    pod: PodFacts = PodFacts()
    """Kubernetes pod of the container."""
    policy: _Text | None = None
    """Name of an [[attach]] table, from the settings of a CNI plugin."""
    sandbox: dict[str, Any] | None = None
    """Keys of [[sandbox]], from the settings of a CNI plugin; in place of an [[attach]] table."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.pid is None and self.netns is None:
            raise ValueError("must have a pid or a netns")
        if self.policy is not None and self.sandbox is not None:
            raise ValueError("has both a policy and a sandbox: give one")
        return self

    @property
    def called(self) -> str:
        """Return the name of the container, or its id."""
        return self.name or self.id

    @property
    def requested(self) -> frozenset[str]:
        """Return the names of the ``[[attach]]`` tables that the container asks for."""
        found = (self.policy, self.annotations.get(POLICY), self.labels.get(POLICY))
        return frozenset(name for name in found if name is not None)


def sandbox_name(key: str, called: str) -> str:
    """Return the name of the sandbox of a container.

    ``key`` identifies the container in the control API, ``called`` is its name or its id. The name
    of the sandbox is the container's name and 12 digits of its key. A key that is no long id is the
    name itself if it can be one. Only the part of both that a sandbox stores counts, because the
    container is found by it again.
    """
    called = called[:MOST_STORED]
    is_named = called != key[:MOST_STORED]
    digits = key[:_ID_LENGTH]
    if not _LONG_ID.fullmatch(key):
        if len(key) <= _MAX_NAME and not _NO_NAME_CHARACTERS.search(key) and key not in {".", ".."}:
            return key
        digits = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]
    plain = _NO_NAME_CHARACTERS.sub("-", called).strip("-")[: _MAX_NAME - _ID_LENGTH - 1]
    return f"{plain}-{digits}" if plain and is_named else digits
