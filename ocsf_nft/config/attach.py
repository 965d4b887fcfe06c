"""Configuration table ``[[attach]]``: policies of containers that a runtime or a plugin adds."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import Table, checked
from ocsf_nft.config.sandbox import SandboxConfig
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.fence import values
from ocsf_nft.quoted import quoted

#: ``fence``: the container is a sandbox. ``allow``: it starts without a fence. ``refuse``: it does
#: not start.
Action: TypeAlias = Literal["fence", "allow", "refuse"]
_Pattern: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
#: Keys of ``[[sandbox]]`` that the container itself determines, or that are for a VM.
_NOT_HERE: Final = (
    "netns", "pid", "container", "install", "device", "subnet", "gateway_port", "mac",
    "whole_machine",
)  # fmt: skip
_OWN: Final = frozenset(("name", "action", "match"))


class MatchConfig(Table):
    """Patterns for the facts about a container, table ``match`` of ``[[attach]]``.

    In a pattern, ``*`` stands for any characters and ``?`` for one character. A container matches
    if each given key has a pattern for its fact. An unknown fact matches no pattern. All engines
    report the runtime and the id. ``image`` is the name that the container was started with. A tag
    ``latest`` is added to a name without a tag, and a digest may stand for the tag. The prefixes
    ``localhost/`` and ``docker.io/`` may be left out of a pattern.
    """

    image: tuple[_Pattern, ...] = ()
    """Patterns for the name of the image, such as agent:*."""
    container: tuple[_Pattern, ...] = ()
    """Patterns for the name of the container, or for its id if it has no name."""
    runtime: tuple[_Pattern, ...] = ()
    """Patterns for the engine: docker, podman, containerd, cri-o, cni."""
    namespace: tuple[_Pattern, ...] = ()
    """Patterns for the Kubernetes namespace of the pod."""
    pod: tuple[_Pattern, ...] = ()
    """Patterns for the name of the Kubernetes pod."""
    label: dict[str, _Pattern] = Field(default={})
    """Patterns for labels and annotations, by their names; all must match."""

    @property
    def is_empty(self) -> bool:
        """Return True if there is no pattern."""
        return not any(getattr(self, key) for key in type(self).model_fields)


class AttachConfig(SandboxConfig):
    """Policy of containers, table ``[[attach]]`` in the file.

    The service searches these tables when an OCI runtime, a hook or a CNI plugin adds a container.
    The first table that matches decides. A table without ``match`` is for containers that ask for
    it: their annotation or label ``org.ocsf-nft.policy`` is the name of the table. A container that
    asks for another table than the one that decides does not start. A container that no table
    matches does not start either: add a last table with the action ``allow`` to change that.

    The other keys are those of ``[[sandbox]]``.
    """

    name: Annotated[str, checked(values.sandbox_name)]
    """Name of the policy: 1 to 64 letters, digits, dots, dashes or underscores."""
    match: MatchConfig = MatchConfig()
    """Patterns for the containers that the table is for."""
    action: Action = "fence"
    """Fence the container, allow its start without a fence, or refuse its start."""

    @model_validator(mode="after")
    def _has_a_policy(self) -> Self:
        for key in _NOT_HERE:
            if key in self.model_fields_set:
                raise ValueError(f"has {key}, which is not for containers: leave it out")
        if self.profile == "tap":
            raise ValueError("has the profile tap, which is not for containers: leave it out")
        if self.guard_device is not None:
            raise ValueError("names a device in host_guard: give auto or off, or leave it out")
        given = self.model_fields_set - _OWN
        if self.action != "fence" and given:
            raise ValueError(
                f"has the action {self.action} and a policy: leave out {', '.join(sorted(given))}"
            )
        return self

    def policy(self) -> dict[str, Any]:
        """Return the given keys of ``[[sandbox]]``, with JSON values as in a file."""
        return {key: value for key, value in self.given().items() if key not in _OWN}

    def check(self) -> None:
        """Raise UsageError if a fence with this policy can't be installed."""
        if self.action != "fence":
            return
        try:
            # The control API installs the fence, so that host names are possible.
            SandboxConfig.check(self.model_copy(update={"install": True}))
        except OcsfNftError as error:
            raise UsageError(f"[[attach]] {quoted(self.name)}: {error}") from error
