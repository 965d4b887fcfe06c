"""Kubernetes manifests as they are sent to a cluster, and as a kubelet interprets them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
EXAMPLE = KUBERNETES / "example"

#: Name of the variable with the proxy's user, in the settings of the fence.
PROXY_UID = "PROXY_UID"

Object: TypeAlias = dict[str, Any]

_VARIABLE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod, as in the API."""

    spec: Object

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def is_sidecar(self) -> bool:
        """Return whether an init container keeps running, and is restarted when it ends."""
        return self.spec.get("restartPolicy") == "Always"

    @property
    def environment(self) -> dict[str, str]:
        return {each["name"]: each["value"] for each in self.spec.get("env", ())}

    @property
    def security(self) -> Object:
        return dict(self.spec["securityContext"])

    @property
    def arguments(self) -> list[str]:
        return self._expanded([*self.spec.get("command", ()), *self.spec.get("args", ())])

    def probe(self, kind: str) -> list[str]:
        """Return the command of a probe; a kubelet replaces its variables (only of ``value``)."""
        return self._expanded(self.spec[kind]["exec"]["command"])

    def mounts(self) -> dict[str, str]:
        """Return the names of the volumes by mount path."""
        return {each["mountPath"]: each["name"] for each in self.spec.get("volumeMounts", ())}

    def _expanded(self, words: list[str]) -> list[str]:
        known = self.environment

        def value(found: re.Match[str]) -> str:
            return "$" if found[1] is None else known.get(found[1], found[0])

        return [_VARIABLE.sub(value, word) for word in words]


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod specification of an object."""

    spec: Object

    @property
    def init_containers(self) -> list[Container]:
        """Return the init containers in the order of their start."""
        return [Container(each) for each in self.spec.get("initContainers", ())]

    @property
    def containers(self) -> list[Container]:
        """Return all containers, first the init containers."""
        return [*self.init_containers, *(Container(each) for each in self.spec["containers"])]

    def __getitem__(self, name: str) -> Container:
        return next(each for each in self.containers if each.name == name)


def rendered(folder: Path) -> list[Object]:
    """Return the objects that kustomize builds from a folder; fail on any warning."""
    return list(yaml.safe_load_all(_built(folder)))


@cache
def _built(folder: Path) -> str:
    done = subprocess.run(
        ["kustomize", "build", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def with_components(
    folder: Path, resources: str, *components: str, patches: Sequence[Object] = ()
) -> list[Object]:
    """Return the objects of a text after the components, as in a user's kustomization."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    mine = folder / "mine"
    mine.mkdir()
    (mine / "resources.yaml").write_text(resources, encoding="utf-8")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["resources.yaml"],
        "components": [f"../kubernetes/{name}" for name in components],
        "patches": list(patches),
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return rendered(mine)


def pod_of(found: Object) -> Pod:
    """Return the pod of an object's pod template."""
    return Pod(found["spec"]["template"]["spec"])


def example_pod() -> Pod:
    """Return the pod of the example."""
    return next(pod_of(found) for found in rendered(EXAMPLE) if found["kind"] == "Deployment")
